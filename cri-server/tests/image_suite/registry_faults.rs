//! Pulls from registries that fail, lie or hang. Whatever happens, nothing is left and nothing unverified is seen.

use std::time::Duration;

use cri_server::image::{Config, Digest, ImageError};
use tokio::time::Instant;

use crate::fixture::{OCI_MANIFEST, TestImage, TestStore, config, is_root, wait_for};
use crate::registry::{image, request};
use crate::server::{Fault, Reply, Seen, Server};

struct Case {
    server: Server,
    store: TestStore,
    image: TestImage,
    layer: String,
}

async fn case(hook: impl Fn(&Seen, usize, Reply, &str) -> Reply + Send + Sync + 'static) -> Case {
    let server = Server::start().await;
    let image = image();
    server.push("a", "1", &image);
    let layer = Digest::of(&image.layers[0]).to_string();
    let big = layer.clone();
    server.hook(move |seen, before, good| hook(seen, before, good, &big));
    let store = TestStore::with(config(server.registries()));
    Case { server, store, image, layer }
}

impl Case {
    async fn succeeds(&self) {
        let pulled = self.store.store.pull(request(&self.server, "a:1")).await.unwrap();
        assert_eq!(pulled.id, self.image.id());
    }

    async fn fails(&self) -> ImageError {
        let error = self.store.store.pull(request(&self.server, "a:1")).await.unwrap_err();
        assert!(self.store.store.list().is_empty());
        self.store.wait_empty().await;
        error
    }

    fn ranges(&self) -> Vec<Option<String>> {
        self.server.asked(&self.layer).into_iter().map(|seen| seen.range).collect()
    }
}

fn is_layer(seen: &Seen, layer: &str) -> bool {
    seen.path.contains(layer)
}

#[tokio::test]
async fn a_transfer_that_breaks_goes_on_where_it_stopped() {
    if !is_root() {
        return;
    }
    for fault in [Fault::Cut(100_000), Fault::Reset(100_000), Fault::Stall(100_000)] {
        let case = case(move |seen, before, good, layer| match before {
            0..=1 if is_layer(seen, layer) => good.fault(fault),
            _ => good,
        })
        .await;
        case.succeeds().await;
        let ranges = case.ranges();
        assert_eq!(ranges.len(), 3);
        assert_eq!(ranges[0], None);
        if fault == Fault::Cut(100_000) {
            assert_eq!(ranges[1..], [Some("bytes=100000-".into()), Some("bytes=200000-".into())]);
        }
    }
}

#[tokio::test]
async fn a_registry_may_ignore_ranges() {
    if !is_root() {
        return;
    }
    let whole = image().layers[0].clone();
    let case = case(move |seen, before, good, layer| match before {
        0 if is_layer(seen, layer) => good.fault(Fault::Cut(100_000)),
        _ if is_layer(seen, layer) => Reply::new(200, whole.clone()),
        _ => good,
    })
    .await;
    case.succeeds().await;
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    if !is_root() {
        return;
    }
    for status in [429, 500, 502, 503, 504, 408] {
        let case = case(move |_, before, good, _| match before {
            0..=1 => Reply::new(status, "").header("retry-after", "0"),
            _ => good,
        })
        .await;
        case.succeeds().await;
    }
}

#[tokio::test]
async fn a_registry_may_ask_for_a_pause() {
    if !is_root() {
        return;
    }
    let case = case(|seen, before, good, _| match before {
        0 if seen.path.contains("/manifests/") => Reply::new(429, "").header("retry-after", "1"),
        _ => good,
    })
    .await;
    let start = Instant::now();
    case.succeeds().await;
    assert!(start.elapsed() >= Duration::from_secs(1));
}

async fn check_fails(
    hook: impl Fn(&Seen, usize, Reply, &str) -> Reply + Send + Sync + 'static,
    expect: impl Fn(&ImageError) -> bool,
    text: &str,
) {
    let case = case(hook).await;
    let error = case.fails().await;
    assert!(expect(&error), "{error:?}");
    assert!(error.to_string().contains(text), "{error}");
}

fn invalid(error: &ImageError) -> bool {
    matches!(error, ImageError::InvalidImage { .. })
}

fn unavailable(error: &ImageError) -> bool {
    matches!(error, ImageError::Unavailable { .. })
}

#[tokio::test]
async fn failures_are_told_apart() {
    if !is_root() {
        return;
    }
    let status = |status| move |_: &Seen, _: usize, _: Reply, _: &str| Reply::new(status, "");
    check_fails(status(404), |e| matches!(e, ImageError::NotFound { .. }), "a:1").await;
    check_fails(status(401), |e| matches!(e, ImageError::Unauthorized { .. }), "a:1").await;
    check_fails(status(403), |e| matches!(e, ImageError::Unauthorized { .. }), "a:1").await;
    check_fails(status(503), unavailable, "a:1").await;
    check_fails(status(418), unavailable, "a:1").await;
    let layer_status = |seen: &Seen, _: usize, good: Reply, layer: &str| {
        if is_layer(seen, layer) { Reply::new(500, "") } else { good }
    };
    check_fails(layer_status, unavailable, "layer sha256:").await;
    let stalls = |seen: &Seen, _: usize, good: Reply, _: &str| {
        if seen.path.contains("/manifests/") { good.fault(Fault::Stall(3)) } else { good }
    };
    check_fails(stalls, unavailable, "a:1").await;
    let cuts = |seen: &Seen, _: usize, good: Reply, layer: &str| {
        if is_layer(seen, layer) { good.fault(Fault::Cut(0)) } else { good }
    };
    check_fails(cuts, unavailable, "layer").await;
}

#[tokio::test]
async fn a_registry_that_drips_is_given_up() {
    if !is_root() {
        return;
    }
    let (start, patience) = (Instant::now(), Duration::from_secs(60));
    let on_layer = |seen: &Seen, _: usize, good: Reply, layer: &str| {
        if is_layer(seen, layer) { good.fault(Fault::Drip(0)) } else { good }
    };
    check_fails(on_layer, unavailable, "layer sha256:").await;
    let on_manifest = |seen: &Seen, _: usize, good: Reply, _: &str| {
        if seen.path.contains("/manifests/") { good.fault(Fault::Drip(0)) } else { good }
    };
    check_fails(on_manifest, unavailable, "a:1").await;
    assert!(start.elapsed() < patience, "{:?}", start.elapsed());
}

#[tokio::test]
async fn nobody_waits_long_for_a_layer_that_another_pull_claims_to_bring() {
    if !is_root() {
        return;
    }
    let (slow, good, image) = (Server::start().await, Server::start().await, image());
    slow.push("a", "1", &image);
    good.push("a", "1", &image);
    let layer = Digest::of(&image.layers[0]).to_string();
    let config_path = Digest::of(&image.config).to_string();
    slow.hook(move |seen, _, good| {
        match seen.path.contains("/manifests/") || seen.path.contains(&config_path) {
            true => good,
            false => good.fault(Fault::Stall(1)),
        }
    });
    let mut registries = slow.registries();
    registries.hosts.extend(good.registries().hosts);
    registries.stall_timeout_seconds = 600;
    let store = TestStore::with(Config { layer_wait: Duration::from_millis(50), ..config(registries) });
    let claiming = {
        let (store, request) = (store.store.clone(), request(&slow, "a:1"));
        tokio::spawn(async move { store.pull(request).await })
    };
    wait_for("the layer is on its way", || !slow.asked(&layer).is_empty()).await;
    let pulled = store.store.pull(request(&good, "a:1")).await.unwrap();
    assert_eq!(pulled.id, image.id());
    claiming.abort();
    assert!(claiming.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn an_unreachable_registry_is_unavailable() {
    let server = Server::start().await;
    let store = TestStore::with(config(server.registries()));
    let request = request(&server, "a:1");
    drop(server);
    let error = store.store.pull(request).await.unwrap_err();
    assert!(unavailable(&error), "{error:?}");
    assert!(error.to_string().starts_with("cannot get 127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn lies_are_found() {
    if !is_root() {
        return;
    }
    let on_layer = |change: fn(Reply) -> Reply| {
        move |seen: &Seen, _: usize, good: Reply, layer: &str| {
            if is_layer(seen, layer) { change(good) } else { good }
        }
    };
    let flip = |mut reply: Reply| {
        let middle = reply.body.len() / 2;
        reply.body[middle] ^= 1;
        reply
    };
    check_fails(on_layer(flip), invalid, "layer").await;
    let longer = |mut reply: Reply| {
        reply.body.push(0);
        reply
    };
    check_fails(on_layer(longer), invalid, "announced").await;
    let shorter = |mut reply: Reply| {
        reply.body.pop();
        reply
    };
    check_fails(on_layer(shorter), invalid, "announced").await;
    check_fails(on_layer(|reply| reply.fault(Fault::Endless)), invalid, "").await;
    let on_config = |seen: &Seen, _: usize, good: Reply, layer: &str| {
        let is_config = seen.path.contains("/blobs/") && !is_layer(seen, layer);
        if is_config { Reply::new(200, good.body.repeat(2)) } else { good }
    };
    check_fails(on_config, invalid, "larger than").await;
    let manifest = |seen: &Seen, _: usize, good: Reply, _: &str| {
        if seen.path.contains("/manifests/") { Reply::new(200, "").fault(Fault::Endless) } else { good }
    };
    check_fails(manifest, invalid, "larger than").await;
    let html = |_: &Seen, _: usize, _: Reply, _: &str| Reply::new(200, "<html>");
    check_fails(html, invalid, "manifest").await;
    let other_type = |seen: &Seen, _: usize, mut good: Reply, _: &str| {
        if seen.path.contains("/manifests/") {
            good.headers = vec![("content-type".into(), crate::fixture::OCI_INDEX.into())];
        }
        good
    };
    check_fails(other_type, invalid, "not what").await;
    let wrong_part = |seen: &Seen, before: usize, good: Reply, layer: &str| match before {
        0 if is_layer(seen, layer) => good.fault(Fault::Cut(1000)),
        _ if is_layer(seen, layer) => Reply::new(206, &b"xx"[..]).header("content-range", "bytes 5-6/7"),
        _ => good,
    };
    check_fails(wrong_part, unavailable, "layer").await;
    let redirects =
        |seen: &Seen, _: usize, _: Reply, _: &str| Reply::new(307, "").header("location", seen.path.clone());
    check_fails(redirects, unavailable, "a:1").await;
}

#[tokio::test]
async fn a_wrong_digest_or_diff_id_is_found() {
    if !is_root() {
        return;
    }
    let server = Server::start().await;
    let store = TestStore::with(config(server.registries()));
    let digest = Digest::of(b"something else");
    server.put(&format!("/v2/a/manifests/{digest}"), OCI_MANIFEST, &image().manifest());
    let error = store.store.pull(request(&server, &format!("a@{digest}"))).await.unwrap_err();
    assert!(invalid(&error) && error.to_string().contains(&digest.to_string()), "{error}");

    let mut image = image();
    let text = String::from_utf8(image.config.clone()).unwrap();
    image.config = text.replace(&image.diff_ids[1].to_string(), &digest.to_string()).into_bytes();
    server.push("a", "1", &image);
    let error = store.store.pull(request(&server, "a:1")).await.unwrap_err();
    assert!(invalid(&error) && error.to_string().contains("diff-id"), "{error}");
    store.wait_empty().await;
}

#[tokio::test]
async fn a_pull_ends_with_its_last_waiter_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let case = case(
        |seen, _, good, layer| {
            if is_layer(seen, layer) { good.fault(Fault::Stall(200_000)) } else { good }
        },
    )
    .await;
    let pull = || {
        let (store, request) = (case.store.store.clone(), request(&case.server, "a:1"));
        tokio::spawn(async move { store.pull(request).await })
    };
    let (first, second) = (pull(), pull());
    wait_for("the layer is on its way", || !case.server.asked(&case.layer).is_empty()).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(case.server.asked("/manifests/").len(), 1);
    assert!(case.store.layer_dirs().len() > 1, "the other waiter keeps it going");
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    case.store.wait_empty().await;
    case.server.hook(|_, _, good| good);
    case.succeeds().await;
}

#[tokio::test]
async fn a_deadline_names_the_stage() {
    if !is_root() {
        return;
    }
    let check = async |stalled: &'static str, expect: &str| {
        let case = case(move |seen, _, good, layer| {
            let hit = if stalled == "layer" { is_layer(seen, layer) } else { seen.path.contains(stalled) };
            if hit { good.fault(Fault::Stall(0)) } else { good }
        })
        .await;
        let mut request = request(&case.server, "a:1");
        request.deadline = Some(Instant::now() + Duration::from_secs(3));
        let error = case.store.store.pull(request).await.unwrap_err();
        assert!(matches!(error, ImageError::DeadlineExceeded { .. }), "{error:?}");
        assert!(error.to_string().contains(expect), "{error}");
        case.store.wait_empty().await;
    };
    check("/manifests/", "looking for").await;
    check("layer", "downloading").await;
    let case = case(|_, _, good, _| good).await;
    let mut request = request(&case.server, "a:1");
    request.deadline = Some(Instant::now());
    let error = case.store.store.pull(request).await.unwrap_err();
    assert!(matches!(error, ImageError::DeadlineExceeded { .. }), "{error:?}");
}

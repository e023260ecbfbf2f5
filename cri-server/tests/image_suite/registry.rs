//! Pulls from a registry that works.

use std::sync::{Arc, Mutex};

use cri_server::image::{Digest, HostConfig, ImageError, Progress, PullRequest};
use serde_json::json;
use tar::EntryType;

use crate::fixture::{
    Layer, OCI_INDEX, OCI_MANIFEST, TestImage, TestStore, config, is_root, tree, with_rootfs,
};
use crate::server::Server;

pub fn image() -> TestImage {
    // Noise does not compress: the blob is large enough to be cut in the middle.
    let noise: Vec<u8> = (0u32..300_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let base = Layer::new().dir("./").dir("etc/").entry("noise", EntryType::Regular, |_| {}, &noise);
    TestImage::new(vec![base, Layer::new().dir("./").dir("etc/").file("etc/name", "x")]).gzipped()
}

pub fn request(server: &Server, name: &str) -> PullRequest {
    PullRequest::new(format!("{}/{name}", server.host).parse().unwrap())
}

#[tokio::test]
async fn a_tag_is_pulled_and_found_by_every_name() {
    if !is_root() {
        return;
    }
    let server = Server::start().await;
    let image = image();
    server.push("a/b", "1", &image);
    let store = TestStore::with(config(server.registries()));
    let pulled = store.store.pull(request(&server, "a/b:1")).await.unwrap();
    let digest = Digest::of(&image.manifest());
    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.repo_tags, [format!("{}/a/b:1", server.host)]);
    assert_eq!(pulled.repo_digests, [format!("{}/a/b@{digest}", server.host)]);
    assert_eq!(pulled.size, (image.config.len() + image.layers[0].len() + image.layers[1].len()) as u64);
    assert_eq!(pulled.config.config.cmd, ["sh"]);
    let hex = image.id().hex();
    for name in [
        &pulled.repo_tags[0],
        &pulled.repo_digests[0],
        &hex,
        &format!("sha256:{hex}"),
        &hex[..12].to_string(),
    ] {
        assert_eq!(store.store.get(name).as_ref(), Some(&pulled), "{name}");
    }
    for name in [&hex[..11], "sha256:", "", "a/b:1", &format!("{}/a/b", server.host)] {
        assert_eq!(store.store.get(name), None, "{name}");
    }
    assert_eq!(store.store.list(), std::slice::from_ref(&pulled));
    assert_eq!(store.store.manifest_blob(&pulled).await.unwrap(), Some(image.manifest()));
    assert_eq!(store.store.config_blob(pulled.id).await.unwrap(), Some(image.config.clone()));
    assert_eq!(with_rootfs(&store, &pulled, tree)["/etc/name"], "file \"x\" 644 0");
    assert!(store.store.fs_usage().bytes > 1_200_000 && store.store.fs_usage().inodes >= 6);
}

#[tokio::test]
async fn a_digest_gives_no_tag_and_a_second_pull_no_download() {
    if !is_root() {
        return;
    }
    let server = Server::start().await;
    let image = image();
    server.push("a", "1", &image);
    let store = TestStore::with(config(server.registries()));
    let digest = Digest::of(&image.manifest());
    let by_digest = store.store.pull(request(&server, &format!("a:ignored@{digest}"))).await.unwrap();
    assert!(by_digest.repo_tags.is_empty());
    assert_eq!(by_digest.repo_digests.len(), 1);
    let blobs = server.asked("/blobs/").len();
    let by_tag = store.store.pull(request(&server, "a:1")).await.unwrap();
    assert_eq!((by_tag.id, by_tag.repo_tags.len()), (by_digest.id, 1));
    assert_eq!(server.asked("/blobs/").len(), blobs);
}

#[tokio::test]
async fn an_index_is_resolved_by_platform() {
    if !is_root() {
        return;
    }
    let server = Server::start().await;
    let image = image();
    server.push("a", "unused", &image);
    let manifest = image.manifest();
    let entry = |kind: &str, bytes: &[u8], architecture: &str| {
        json!({ "mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len(),
            "platform": { "os": "linux", "architecture": architecture } })
    };
    let inner = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry(OCI_MANIFEST, b"other", "arm64"), entry(OCI_MANIFEST, &manifest, "amd64")] });
    let inner = inner.to_string().into_bytes();
    let outer = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(OCI_INDEX, &inner, "amd64")] });
    let outer = outer.to_string().into_bytes();
    server.put(&format!("/v2/a/manifests/{}", Digest::of(&inner)), OCI_INDEX, &inner);
    server.put("/v2/a/manifests/1", OCI_INDEX, &outer);
    let store = TestStore::with(config(server.registries()));
    let pulled = store.store.pull(request(&server, "a:1")).await.unwrap();
    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.repo_digests, [format!("{}/a@{}", server.host, Digest::of(&outer))]);

    let foreign = json!({ "schemaVersion": 2, "manifests": [entry(OCI_MANIFEST, &manifest, "s390x")] });
    server.put("/v2/a/manifests/2", OCI_INDEX, foreign.to_string().as_bytes());
    let error = store.store.pull(request(&server, "a:2")).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("linux/amd64"), "{error}");
}

#[tokio::test]
async fn mirrors_are_tried_first_and_the_origin_last() {
    if !is_root() {
        return;
    }
    let (origin, empty, mirror) = (Server::start().await, Server::start().await, Server::start().await);
    let image = image();
    mirror.push("a", "1", &image);
    origin.push("a", "only-here", &image);
    let mirrors = vec![
        "http://127.0.0.1:9".into(),
        format!("http://{}", empty.host),
        format!("http://{}", mirror.host),
    ];
    let host = HostConfig { mirrors, plain_http: true };
    let store = TestStore::with(config(origin.registries_with(host)));
    let pulled = store.store.pull(request(&origin, "a:1")).await.unwrap();
    assert_eq!(pulled.repo_tags, [format!("{}/a:1", origin.host)]);
    assert!(origin.seen().is_empty());
    let ns = format!("?ns={}", origin.host.replace(':', "%3A"));
    assert!(mirror.seen().iter().all(|seen| seen.path.ends_with(&ns)), "{:?}", mirror.seen());
    assert!(!empty.seen().is_empty());
    store.store.pull(request(&origin, "a:only-here")).await.unwrap();
    assert_eq!(origin.asked("/manifests/").len(), 1);
}

#[tokio::test]
async fn equal_pulls_are_one_and_images_share_downloads() {
    if !is_root() {
        return;
    }
    let server = Server::start().await;
    let (one, mut two) = (image(), image());
    two.config = String::from_utf8(two.config).unwrap().replace("A=b", "A=c").into_bytes();
    server.push("a", "1", &one);
    server.push("b", "1", &two);
    let store = TestStore::with(config(server.registries()));
    let pull = |name: &str| store.store.pull(request(&server, name));
    let (first, second, third) = tokio::join!(pull("a:1"), pull("a:1"), pull("b:1"));
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(third.unwrap().id, two.id());
    assert_eq!(server.asked("/v2/a/manifests/").len(), 1);
    let layer = Digest::of(&one.layers[0]).to_string();
    assert_eq!(server.asked(&layer).len(), 1, "a layer that two images have is downloaded once");
}

#[derive(Default)]
struct Watcher(Mutex<Vec<(Digest, u64, u64)>>);

impl Progress for Watcher {
    fn layer(&self, digest: &Digest, done: u64, total: u64) {
        self.0.lock().unwrap().push((*digest, done, total));
    }
}

#[tokio::test]
async fn progress_is_told_by_layer() {
    if !is_root() {
        return;
    }
    let server = Server::start().await;
    let image = image();
    server.push("a", "1", &image);
    let store = TestStore::with(config(server.registries()));
    let watcher = Arc::new(Watcher::default());
    let mut request = request(&server, "a:1");
    request.progress = Some(watcher.clone());
    store.store.pull(request).await.unwrap();
    let told = watcher.0.lock().unwrap();
    for layer in &image.layers {
        let of_layer: Vec<_> = told.iter().filter(|(digest, ..)| *digest == Digest::of(layer)).collect();
        let size = layer.len() as u64;
        assert_eq!((of_layer[0].1, of_layer.last().unwrap().1), (0, size));
        assert!(of_layer.windows(2).all(|pair| pair[0].1 <= pair[1].1 && pair[0].2 == size));
    }
}

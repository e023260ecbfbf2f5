//! Who gets to see credentials, and who is let in without.

use cri_server::image::{Credentials, HostConfig, ImageError, PullRequest};

use crate::fixture::{TestStore, config, is_root};
use crate::registry::{image, request};
use crate::server::{Reply, Seen, Server};

const SECRET: &str = "s3cr3t-canary";

fn user(name: &str) -> Option<Credentials> {
    Some(Credentials::Basic { user: name.into(), password: SECRET.into() })
}

fn basic(name: &str) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{SECRET}"));
    format!("Basic {text}")
}

fn with(server: &Server, name: &str, credentials: Option<Credentials>) -> PullRequest {
    PullRequest { credentials, ..request(server, name) }
}

fn is_unauthorized(result: &Result<impl Sized, ImageError>) -> bool {
    matches!(result, Err(ImageError::Unauthorized { .. }))
}

/// Lets in who has the password, or the token that the token server gives for it.
fn guard(seen: &Seen, good: Reply, realm: &str) -> Reply {
    if seen.path.starts_with("/token") {
        let who = match seen.authorization.as_deref() {
            Some(text) if text == basic("alice") => "alice",
            Some(_) => return Reply::new(401, ""),
            None if seen.body.contains("refresh_token=refresh%2F1") => "alice",
            None => "anonymous",
        };
        return Reply::new(200, format!(r#"{{"token":"for-{who}"}}"#));
    }
    let private = seen.path.contains("/private/");
    match seen.authorization.as_deref() {
        Some("Bearer for-alice") => good,
        Some("Bearer for-anonymous") if !private => good,
        _ => Reply::new(401, "")
            .header("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"test\"")),
    }
}

async fn guarded() -> (Server, TestStore) {
    let server = Server::start().await;
    server.push("private/a", "1", &image());
    server.push("public/a", "1", &image());
    let realm = format!("http://{}/token", server.host);
    server.hook(move |seen, _, good| guard(seen, good, &realm));
    let store = TestStore::with(config(server.registries()));
    (server, store)
}

#[tokio::test]
async fn tokens_are_fetched_for_the_repository() {
    if !is_root() {
        return;
    }
    let (server, store) = guarded().await;
    store.store.pull(with(&server, "private/a:1", user("alice"))).await.unwrap();
    let tokens = server.asked("/token");
    assert_eq!(tokens.len(), 1);
    assert!(
        tokens[0].path.contains("service=test")
            && tokens[0].path.contains("scope=repository%3Aprivate%2Fa%3Apull")
    );
    let (server, store) = guarded().await;
    store.store.pull(request(&server, "public/a:1")).await.unwrap();
    let (server, store) = guarded().await;
    let identity = Some(Credentials::Identity("refresh/1".into()));
    store.store.pull(with(&server, "private/a:1", identity)).await.unwrap();
    assert_eq!(server.asked("/token")[0].method, "POST");
    let (server, store) = guarded().await;
    let token = Some(Credentials::Registry("for-alice".into()));
    store.store.pull(with(&server, "private/a:1", token)).await.unwrap();
    assert!(server.asked("/token").is_empty());
}

#[tokio::test]
async fn nobody_pulls_with_anothers_identity() {
    if !is_root() {
        return;
    }
    let (server, store) = guarded().await;
    let pull = |who| store.store.pull(with(&server, "private/a:1", who));
    let (alice, bob, nobody) = tokio::join!(pull(user("alice")), pull(user("bob")), pull(None));
    assert!(alice.is_ok() && is_unauthorized(&bob) && is_unauthorized(&nobody));
    let (bob, nobody, alice) = (pull(user("bob")).await, pull(None).await, pull(user("alice")).await);
    assert!(alice.is_ok() && is_unauthorized(&bob) && is_unauthorized(&nobody));
    let error = bob.unwrap_err();
    let shown = format!("{error:?} {error}");
    assert!(!shown.contains(SECRET) && !shown.contains(&basic("bob")[6..]), "{shown}");
}

#[tokio::test]
async fn an_expired_token_is_fetched_again() {
    if !is_root() {
        return;
    }
    let server = Server::start().await;
    server.push("a", "1", &image());
    let realm = format!("http://{}/token", server.host);
    server.hook(move |seen, before, good| match () {
        _ if seen.path.starts_with("/token") => Reply::new(200, format!(r#"{{"access_token":"t{before}"}}"#)),
        _ if seen.path.contains("/manifests/") && seen.authorization.as_deref() == Some("Bearer t0") => good,
        _ if seen.authorization.as_deref() == Some("Bearer t1") => good,
        _ if seen.authorization.as_deref() == Some("Bearer t2") => good,
        _ if seen.authorization.as_deref() == Some("Bearer t3") => good,
        _ => Reply::new(401, "").header("www-authenticate", format!("Bearer realm=\"{realm}\"")),
    });
    let store = TestStore::with(config(server.registries()));
    store.store.pull(request(&server, "a:1")).await.unwrap();
}

#[tokio::test]
async fn passwords_go_to_a_registry_that_asks_for_them() {
    if !is_root() {
        return;
    }
    let server = Server::start().await;
    server.push("a", "1", &image());
    server.hook(|seen, _, good| match seen.authorization.as_deref() {
        Some(text) if text == basic("alice") => good,
        _ => Reply::new(401, "").header("www-authenticate", "Basic realm=\"x\""),
    });
    let store = TestStore::with(config(server.registries()));
    assert!(is_unauthorized(&store.store.pull(with(&server, "a:1", user("bob"))).await));
    assert!(is_unauthorized(&store.store.pull(request(&server, "a:1")).await));
    store.store.pull(with(&server, "a:1", user("alice"))).await.unwrap();
    assert_eq!(
        server.seen()[0].authorization,
        Some(basic("bob")).filter(|_| false),
        "nothing before it is asked for"
    );
}

#[tokio::test]
async fn a_redirect_carries_no_credentials() {
    if !is_root() {
        return;
    }
    let (server, other) = (Server::start().await, Server::start().await);
    server.push("a", "1", &image());
    other.push("a", "1", &image());
    let elsewhere = format!("http://{}", other.host);
    server.hook(move |seen, _, good| match seen.authorization.as_deref() {
        Some(_) if seen.path.contains("/blobs/") => {
            Reply::new(307, "").header("location", format!("{elsewhere}{}", seen.path))
        }
        Some(_) => good,
        None => Reply::new(401, "").header("www-authenticate", "Basic"),
    });
    let store = TestStore::with(config(server.registries()));
    store.store.pull(with(&server, "a:1", user("alice"))).await.unwrap();
    assert!(!other.seen().is_empty());
    assert!(other.seen().iter().all(|seen| seen.authorization.is_none()));
    // Nor does the other place get them by asking.
    let store = TestStore::with(config(server.registries()));
    other.hook(|_, _, _| Reply::new(401, "").header("www-authenticate", "Basic"));
    assert!(is_unauthorized(&store.store.pull(with(&server, "a:1", user("alice"))).await));
    assert!(other.seen().iter().all(|seen| seen.authorization.is_none()));
}

#[tokio::test]
async fn a_mirror_gets_no_credentials() {
    if !is_root() {
        return;
    }
    let (origin, mirror) = (Server::start().await, Server::start().await);
    origin.push("a", "1", &image());
    mirror.hook(|_, _, _| Reply::new(401, "").header("www-authenticate", "Basic"));
    origin.hook(|seen, _, good| match seen.authorization {
        Some(_) => good,
        None => Reply::new(401, "").header("www-authenticate", "Basic"),
    });
    let host = HostConfig { mirrors: vec![format!("http://{}", mirror.host)], plain_http: true };
    let store = TestStore::with(config(origin.registries_with(host)));
    store.store.pull(with(&origin, "a:1", user("alice"))).await.unwrap();
    assert!(!mirror.seen().is_empty());
    assert!(mirror.seen().iter().all(|seen| seen.authorization.is_none()));
}

#[tokio::test]
async fn a_foreign_token_server_of_a_plain_registry_gets_no_credentials() {
    if !is_root() {
        return;
    }
    let (server, other) = (Server::start().await, Server::start().await);
    server.push("private/a", "1", &image());
    let realm = format!("http://{}/token", other.host);
    server.hook(move |seen, _, good| guard(seen, good, &realm));
    other.hook(|seen, _, good| guard(seen, good, ""));
    let store = TestStore::with(config(server.registries()));
    assert!(is_unauthorized(&store.store.pull(with(&server, "private/a:1", user("alice"))).await));
    assert!(is_unauthorized(
        &store
            .store
            .pull(with(&server, "private/a:1", Some(Credentials::Identity("refresh/1".into()))))
            .await
    ));
    assert!(other.seen().iter().all(|seen| seen.authorization.is_none() && !seen.body.contains("refresh")));
}

#[tokio::test]
async fn this_node_is_not_asked_on_anothers_word() {
    if !is_root() {
        return;
    }
    for realm in [
        "http://169.254.169.254/latest",
        "http://localhost:1/token",
        "http://[fe80::1]/x",
        "file:///etc/passwd",
        "x",
    ] {
        let server = Server::start().await;
        server.push("private/a", "1", &image());
        server.hook(move |seen, _, good| guard(seen, good, realm));
        let store = TestStore::with(config(server.registries()));
        let result = store.store.pull(with(&server, "private/a:1", user("alice"))).await;
        assert!(is_unauthorized(&result), "{realm}: {result:?}");
    }
    let server = Server::start().await;
    server.hook(|_, _, _| Reply::new(302, "").header("location", "http://169.254.169.254/latest"));
    let store = TestStore::with(config(server.registries()));
    let error = store.store.pull(request(&server, "a:1")).await.unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error:?}");
}

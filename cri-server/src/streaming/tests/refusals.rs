//! Requests that lead to no session.

use super::*;

const SPDY: [(&str, &str); 2] = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];

#[tokio::test]
async fn the_answer_says_what_was_expected() {
    let (server, _node) = start();
    let check = async |url: String, method: &str, headers: &[(&str, &str)], expect: &[&str]| {
        let (answer, _io) = ask(&url, method, headers).await;
        for (line, expect) in expect.iter().enumerate() {
            let found =
                if line == 0 { answer[0].contains(expect) } else { answer.contains(&expect.to_string()) };
            assert!(found, "{method} {url} {headers:?}: {answer:?}");
        }
    };
    let url = || server.url_for(exec("cat", ALL)).unwrap();
    let forward_url = || server.url_for(forward(&[])).unwrap();
    check(url(), "PUT", &SPDY, &["405"]).await;
    check(format!("{}x", url()), "POST", &SPDY, &["404"]).await;
    check(url().replace("/exec/", "/attach/"), "POST", &SPDY, &["404"]).await;
    check(url(), "GET", &[], &["400"]).await;
    check(url(), "GET", &[("Upgrade", "SPDY/3.1")], &["400"]).await;
    check(url(), "POST", &SPDY, &["400"]).await;
    let offer = |offer| [SPDY[0], SPDY[1], ("X-Stream-Protocol-Version", offer)];
    check(
        url(),
        "POST",
        &offer("v9.channel.k8s.io"),
        &[
            "403",
            "x-accepted-stream-protocol-versions: v4.channel.k8s.io",
            "x-accepted-stream-protocol-versions: channel.k8s.io",
        ],
    )
    .await;
    check(
        forward_url(),
        "POST",
        &offer("v4.channel.k8s.io"),
        &["403", "x-accepted-stream-protocol-versions: portforward.k8s.io"],
    )
    .await;
    let websocket = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    check(url(), "GET", &websocket[..3], &["400", "sec-websocket-version: 13"]).await;
    let with = |header| [&websocket[..], &[header]].concat();
    check(url(), "GET", &with(("Sec-WebSocket-Protocol", "v9.channel.k8s.io")), &["403"]).await;
    check(forward_url(), "GET", &with(("Sec-WebSocket-Protocol", "v4.channel.k8s.io")), &["400"]).await;
    let large = "x".repeat(20 << 10);
    check(url(), "GET", &[("X-Large", &large)], &["431"]).await;
}

#[tokio::test]
async fn a_token_serves_once() {
    let (server, _node) = start();
    let url = server.url_for(exec("cat", ALL)).unwrap();
    let client = dial_spdy(&url, "v4.channel.k8s.io").await;
    let (answer, _io) = ask(&url, "POST", &SPDY).await;
    assert!(answer[0].contains("404"), "{answer:?}");
    drop(client);
}

#[tokio::test]
async fn the_server_ends_with_its_owner() {
    let (server, _node) = start();
    let mut client = dial_spdy(&server.url_for(exec("sleep", ALL)).unwrap(), "v4.channel.k8s.io").await;
    drop(server);
    assert_eq!(client.next().await, None);
}

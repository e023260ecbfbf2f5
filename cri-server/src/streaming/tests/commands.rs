//! Exec and attach over SPDY.

use std::sync::atomic::Ordering;

use super::*;
use crate::streaming::spdy::Control;
use crate::streaming::spdy::client::Said;

const VERSIONS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io, v2.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

async fn open(client: &mut Spdy, roles: &[&str]) -> Vec<u32> {
    let mut ids = Vec::new();
    for role in roles {
        ids.push(client.open(&[("streamType", role)]).await);
    }
    ids
}

#[tokio::test]
async fn every_version_tells_the_result() {
    let (server, _node) = start();
    let success = r#"{"metadata":{},"status":"Success"}"#;
    let check = async |request: fn() -> Request, expect: [(&str, &str); 4]| {
        for (version, (out, status)) in VERSIONS.into_iter().zip(expect) {
            let mut client = dial_spdy(&server.url_for(request()).unwrap(), version).await;
            let ids = open(&mut client, &["error", "stdin", "stdout", "stderr"]).await;
            let texts = client.drain(&ids).await;
            let texts: Vec<_> = ids.iter().map(|id| texts[id].0.as_str()).collect();
            assert_eq!(texts[2], out, "{version}");
            if status.is_empty() || texts[0].is_empty() {
                assert_eq!(texts[0], status, "{version}");
            } else {
                assert!(texts[0].contains(status), "{version}: {}", texts[0]);
            }
        }
    };
    check(|| exec("exit 0", ALL), [("out", success), ("out", ""), ("out", ""), ("out", "")]).await;
    let text = "command terminated with non-zero exit code: 7";
    let status = r#""details":{"causes":[{"message":"7","reason":"ExitCode"}]}"#;
    check(|| exec("exit 7", ALL), [("out", status), ("out", text), ("out", text), ("out", text)]).await;
    let text = "program \"nothing\" is not found";
    let status = r#""reason":"InternalError""#;
    check(|| exec("nothing", ALL), [("", status), ("", text), ("", text), ("", text)]).await;
    let out = "attached";
    check(|| attach(ALL), [(out, success), (out, ""), (out, ""), (out, "")]).await;
}

#[tokio::test]
async fn the_end_of_stdin_reaches_the_process() {
    let (server, _node) = start();
    let wiring = Wiring { stderr: false, ..ALL };
    let mut client = dial_spdy(&server.url_for(exec("cat", wiring)).unwrap(), VERSIONS[0]).await;
    let ids = open(&mut client, &["error", "stdin", "stdout"]).await;
    client.send(ids[1], b"hello ", Part::Middle).await;
    client.send(ids[1], &[], Part::Middle).await;
    client.send(ids[1], b"there", Part::Last).await;
    let texts = client.drain(&ids).await;
    assert_eq!(texts[&ids[2]], ("hello there".into(), true));
}

#[tokio::test]
async fn a_large_copy_arrives_whole() {
    let (server, _node) = start();
    let wiring = Wiring { stderr: false, ..ALL };
    let mut client = dial_spdy(&server.url_for(exec("cat", wiring)).unwrap(), VERSIONS[0]).await;
    let ids = open(&mut client, &["error", "stdin", "stdout"]).await;
    // One frame is as large as the protocol can say, and it goes both ways.
    let sent: Vec<u8> = (0..0xff_ffff_u32).map(|number| (number / 251) as u8).collect();
    let received = client.exchange(ids[1], &sent, ids[2]).await;
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[tokio::test]
async fn sizes_reach_a_terminal() {
    let (server, _node) = start();
    for (version, expect) in [(VERSIONS[0], "80x24 100x40 "), (VERSIONS[1], "80x24 100x40 ")] {
        let mut client = dial_spdy(&server.url_for(exec("sizes", TERMINAL)).unwrap(), version).await;
        let ids = open(&mut client, &["error", "stdin", "stdout", "resize"]).await;
        client.send(ids[3], b"{\"Width\":80,\"Height\":24}\n{\"Width\":0,\"Height\":0}", Part::Middle).await;
        client.send(ids[3], b"{\"Width\":100,\"Height\"", Part::Middle).await;
        client.send(ids[3], b":40}", Part::Middle).await;
        let mut text = String::new();
        while text != expect {
            if let Some(Said::Content(_, bytes, _)) = client.next().await {
                text.push_str(std::str::from_utf8(&bytes).unwrap());
            }
        }
    }
}

#[tokio::test]
async fn streams_that_are_not_wanted_are_refused() {
    let (server, _node) = start();
    let wiring = Wiring { stdin: false, ..ALL };
    let mut client = dial_spdy(&server.url_for(exec("sleep", wiring)).unwrap(), VERSIONS[0]).await;
    let check = async |client: &mut Spdy, role: &str, expect: Control| {
        client.open(&[("streamType", role)]).await;
        assert_eq!(client.next().await, Some(Said::Control(expect)), "{role}");
    };
    let refused = |id| Control::RstStream { id, status: 3 };
    check(&mut client, "stdin", refused(1)).await;
    check(&mut client, "screen", refused(3)).await;
    let ids = open(&mut client, &["error", "stdout"]).await;
    for _reply in &ids {
        assert!(matches!(client.next().await, Some(Said::Control(Control::SynReply { .. }))));
    }
    check(&mut client, "stdout", refused(9)).await;
}

#[tokio::test]
async fn a_client_that_opens_too_few_streams_is_told() {
    let (server, _node) = start_impatient();
    let mut client = dial_spdy(&server.url_for(exec("cat", ALL)).unwrap(), VERSIONS[0]).await;
    let ids = open(&mut client, &["error"]).await;
    let texts = client.drain(&ids).await;
    let status = &texts[&ids[0]].0;
    assert!(status.contains("waiting for the client to open its streams took longer than 1 s"), "{status}");
}

#[tokio::test]
async fn a_client_that_goes_is_noticed() {
    let (server, node) = start();
    let check = async |command: &str, flood: bool| {
        let mut client = dial_spdy(&server.url_for(exec(command, ALL)).unwrap(), VERSIONS[0]).await;
        let ids = open(&mut client, &["error", "stdin", "stdout", "stderr"]).await;
        for _reply in &ids {
            client.next_but_credit().await.unwrap();
        }
        if flood {
            // Nobody reads this; the end of the connection stands behind it.
            client.send(ids[1], &[0; 256 << 10], Part::Middle).await;
        }
        drop(client);
        node.gone.notified().await;
    };
    check("yes", false).await;
    check("sleep", false).await;
    check("sleep", true).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_process() {
    let (server, node) = start();
    let mut client = dial_spdy(&server.url_for(exec("yes", ALL)).unwrap(), VERSIONS[0]).await;
    open(&mut client, &["error", "stdin", "stdout", "stderr"]).await;
    node.stalled.notified().await;
    let written = node.written.load(Ordering::Relaxed);
    // The kernel's buffers hold most of it.
    assert!(written < 16 << 20, "{written} bytes are kept for a client that does not read");
    drop(client);
    node.gone.notified().await;
}

#[tokio::test]
async fn windows_are_kept_for_a_client_that_keeps_them() {
    let (server, _node) = start();
    let wiring = Wiring { stderr: false, ..ALL };
    let mut client = dial_spdy(&server.url_for(exec("cat", wiring)).unwrap(), VERSIONS[0]).await;
    client.control(&Control::Settings(vec![(7, 10)])).await;
    let ids = open(&mut client, &["error", "stdin", "stdout"]).await;
    client.send(ids[1], b"0123456789abcdefghij", Part::Last).await;
    for _reply in &ids {
        client.next().await.unwrap();
    }
    let next = async |client: &mut Spdy| match client.next_but_credit().await {
        Some(Said::Content(_, bytes, Part::Middle)) => String::from_utf8(bytes.to_vec()).unwrap(),
        said => format!("{said:?}"),
    };
    assert_eq!(next(&mut client).await, "0123456789");
    // A pong comes after everything that could be said before it.
    client.control(&Control::Ping(1)).await;
    assert_eq!(client.next().await, Some(Said::Control(Control::Ping(1))));
    client.control(&Control::WindowUpdate { id: ids[2], delta: 5 }).await;
    assert_eq!(next(&mut client).await, "abcde");
    client.control(&Control::Settings(vec![(7, 1000)])).await;
    assert_eq!(next(&mut client).await, "fghij");
}

#[tokio::test]
async fn what_was_read_widens_the_clients_window() {
    let (server, _node) = start();
    let wiring = Wiring { stderr: false, ..ALL };
    let mut client = dial_spdy(&server.url_for(exec("cat", wiring)).unwrap(), VERSIONS[0]).await;
    let ids = open(&mut client, &["error", "stdin", "stdout"]).await;
    client.send(ids[1], &[0; 48 << 10], Part::Middle).await;
    let (mut stream, mut connection) = (0, 0);
    while stream == 0 || connection == 0 {
        if let Some(Said::Control(Control::WindowUpdate { id, delta })) = client.next().await {
            *(if id == 0 { &mut connection } else { &mut stream }) += delta;
        }
    }
    assert!((32 << 10..=48 << 10).contains(&stream), "{stream}");
    assert!((32 << 10..=48 << 10).contains(&connection), "{connection}");
}

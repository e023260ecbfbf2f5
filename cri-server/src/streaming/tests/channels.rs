//! Everything over WebSocket.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::streaming::websocket::{Format, Opcode};

/// Text of each channel, greeting messages counted.
fn by_channel(messages: &[bytes::Bytes], format: Format) -> (Vec<(u8, String)>, usize) {
    let mut channels = std::collections::BTreeMap::<u8, Vec<u8>>::new();
    let mut empty = 0;
    for message in messages {
        let (channel, bytes) = (message[0], &message[1..]);
        let (channel, bytes) = match format {
            Format::Base64 => (channel - b'0', STANDARD.decode(bytes).unwrap()),
            _bytes => (channel, bytes.to_vec()),
        };
        empty += usize::from(bytes.is_empty());
        channels.entry(channel).or_default().extend(bytes);
    }
    let text = |(channel, bytes)| (channel, String::from_utf8(bytes).unwrap());
    (channels.into_iter().map(text).collect(), empty)
}

#[tokio::test]
async fn every_subprotocol_tells_the_result() {
    let (server, _node) = start();
    let status = r#"{"metadata":{},"status":"Success"}"#;
    let check = async |protocol: &str, format: Format, greetings: usize, report: &str| {
        let mut client = dial_websocket(&server.url_for(exec("exit 0", ALL)).unwrap(), protocol).await;
        let (messages, code) = client.drain().await;
        assert_eq!(code, 1000);
        let (channels, empty) = by_channel(&messages, format);
        let mut expect = vec![(1, "out".to_string()), (2, "err".to_string())];
        expect.extend((!report.is_empty()).then(|| (3, report.to_string())));
        assert_eq!((channels, empty), (expect, greetings), "{protocol}");
    };
    check("", Format::Binary, 1, "").await;
    check("channel.k8s.io", Format::Binary, 1, "").await;
    check("base64.channel.k8s.io", Format::Base64, 1, "").await;
    check("v4.channel.k8s.io", Format::Binary, 1, status).await;
    check("v4.base64.channel.k8s.io", Format::Base64, 1, status).await;
    check("v5.channel.k8s.io", Format::Binary, 0, status).await;
}

#[tokio::test]
async fn a_channel_can_be_closed_in_version_5() {
    let (server, _node) = start();
    let mut client = dial_websocket(&server.url_for(exec("cat", ALL)).unwrap(), "v5.channel.k8s.io").await;
    client.send(Opcode::Binary, Part::Middle, b"\0he").await;
    client.send(Opcode::Ping, Part::Last, b"beat").await;
    client.send(Opcode::Continuation, Part::Middle, b"ll").await;
    client.send(Opcode::Continuation, Part::Last, b"o").await;
    client.send(Opcode::Binary, Part::Last, b"\x09nobody").await;
    client.send(Opcode::Binary, Part::Last, b"").await;
    client.send(Opcode::Binary, Part::Last, &[255, 0]).await;
    let mut text = Vec::new();
    let mut pongs = Vec::new();
    loop {
        match client.next().await.unwrap() {
            (Opcode::Binary, message) if message[0] == 1 => text.extend_from_slice(&message[1..]),
            (Opcode::Pong, payload) => pongs.push(payload),
            (Opcode::Close, _) => break,
            _status => {}
        }
    }
    assert_eq!(
        (text.as_slice(), pongs.as_slice()),
        (&b"hello"[..], &[bytes::Bytes::from_static(b"beat")][..])
    );
}

#[tokio::test]
async fn base64_may_be_cut_anywhere() {
    let (server, _node) = start();
    let url = server.url_for(exec("cat", ALL)).unwrap();
    let mut client = dial_websocket(&url, "v4.base64.channel.k8s.io").await;
    let text = format!("0{}", STANDARD.encode("hello"));
    client.send(Opcode::Text, Part::Middle, &text.as_bytes()[..1]).await;
    client.send(Opcode::Continuation, Part::Middle, &text.as_bytes()[1..4]).await;
    client.send(Opcode::Continuation, Part::Middle, &text.as_bytes()[4..]).await;
    client.send(Opcode::Continuation, Part::Last, b"").await;
    let mut received = Vec::new();
    while received != b"hello" {
        let (_opcode, message) = client.next().await.unwrap();
        received.extend(STANDARD.decode(&message[1..]).unwrap());
    }
}

#[tokio::test]
async fn what_the_protocol_forbids_ends_the_connection() {
    let (server, node) = start();
    let check = async |protocol: &str, bytes: &[u8]| {
        let mut client = dial_websocket(&server.url_for(exec("sleep", ALL)).unwrap(), protocol).await;
        client.raw(bytes).await;
        let closed = loop {
            match client.next().await {
                Some((Opcode::Close, code)) => break code,
                Some(_greeting) => {}
                None => panic!("{protocol} {bytes:?}: closed without a word"),
            }
        };
        assert_eq!(closed[..], 1002_u16.to_be_bytes(), "{protocol} {bytes:?}");
        node.gone.notified().await;
    };
    check("v4.channel.k8s.io", b"\x82\x02\x00x").await; // not masked
    check("v4.channel.k8s.io", b"\x81\x82\0\0\0\0\x00x").await; // text
    check("v4.base64.channel.k8s.io", b"\x82\x82\0\0\0\x000x").await; // bytes
    check("v4.base64.channel.k8s.io", b"\x81\x85\0\0\0\x000****").await; // not base64
    check("v4.channel.k8s.io", b"\x80\x81\0\0\0\0x").await; // continuation of nothing
    check("v4.channel.k8s.io", b"\x02\x81\0\0\0\0\x00\x82\x81\0\0\0\0\x00").await; // message in a message
    check("v4.channel.k8s.io", b"\xf2\x80\0\0\0\0").await; // reserved bits
}

#[tokio::test]
async fn a_client_that_goes_or_closes_is_noticed() {
    let (server, node) = start();
    for says in [false, true] {
        let mut client =
            dial_websocket(&server.url_for(exec("yes", ALL)).unwrap(), "v5.channel.k8s.io").await;
        client.next().await.unwrap();
        if says {
            client.send(Opcode::Close, Part::Last, &1000_u16.to_be_bytes()).await;
        }
        drop(client);
        node.gone.notified().await;
    }
}

#[tokio::test]
async fn ports_have_two_channels_each() {
    let (server, _node) = start();
    let check = async |protocol: &str, base64: bool| {
        let url = server.url_for(forward(&[1, 8080])).unwrap();
        let mut client = dial_websocket(&url, protocol).await;
        let mut first = std::collections::BTreeMap::<u8, Vec<u8>>::new();
        let text = |first: &std::collections::BTreeMap<u8, Vec<u8>>, channel| {
            first.get(&channel).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
        };
        while first.len() < 4 || !text(&first, 1).ends_with("is not found") {
            let (_opcode, message) = client.next().await.unwrap();
            let (channel, bytes) = (message[0], message[1..].to_vec());
            let (channel, bytes) =
                if base64 { (channel - b'0', STANDARD.decode(bytes).unwrap()) } else { (channel, bytes) };
            first.entry(channel).or_default().extend(bytes);
        }
        assert_eq!(first[&0], 1_u16.to_le_bytes(), "{protocol}");
        assert_eq!(first[&2], 8080_u16.to_le_bytes(), "{protocol}");
        assert_eq!(first[&3], 8080_u16.to_le_bytes(), "{protocol}");
    };
    check("", false).await;
    check("v4.channel.k8s.io", false).await;
    check("v4.base64.channel.k8s.io", true).await;
}

#[tokio::test]
async fn spdy_is_carried_in_messages() {
    let (server, _node) = start();
    let url = server.url_for(forward(&[])).unwrap();
    let mut carrier = dial_websocket(&url, "SPDY/3.1+portforward.k8s.io").await;
    let (inside, outside) = tokio::io::duplex(1 << 20);
    let (read, mut write) = tokio::io::split(outside);
    let mut read = BufReader::new(read);
    let pump = tokio::spawn(async move {
        let mut buffer = [0; 1000];
        loop {
            tokio::select! {
                sent = read.read(&mut buffer) => match sent.unwrap() {
                    0 => break,
                    sent => carrier.send(Opcode::Binary, Part::Last, &buffer[..sent]).await,
                },
                message = carrier.next() => match message {
                    Some((Opcode::Binary, message)) => write.write_all(&message).await.unwrap(),
                    Some(_control) => {}
                    None => break,
                },
            }
        }
    });
    let mut client = spdy::client::Client::new(tokio::io::split(inside));
    let mut ids = Vec::new();
    for half in ["error", "data"] {
        ids.push(client.open(&[("streamType", half), ("port", "80"), ("requestID", "1")]).await);
    }
    client.send(ids[1], b"through", Part::Last).await;
    assert_eq!(client.drain(&ids).await[&ids[1]], ("80:through".into(), true));
    drop(client);
    pump.await.unwrap();
}

//! Clients that send what no honest one sends.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::streaming::mux::{Hangup, Limits};
use crate::streaming::spdy::client::Said;
use crate::streaming::spdy::{Control, Deflater};

async fn sleeping(server: &Streaming) -> Spdy {
    let mut client = dial_spdy(&server.url_for(exec("sleep", ALL)).unwrap(), "v4.channel.k8s.io").await;
    for role in ["error", "stdin", "stdout", "stderr"] {
        client.open(&[("streamType", role)]).await;
        client.next().await.unwrap();
    }
    client
}

fn reset(id: u32, status: u32) -> Option<Said> {
    Some(Said::Control(Control::RstStream { id, status }))
}

/// The last words of a connection that broke a rule, and its end.
async fn goes_away(client: &mut Spdy) -> bool {
    loop {
        match client.next().await {
            Some(Said::Control(Control::GoAway { status: 1, .. })) => return client.next().await.is_none(),
            Some(_before) => {}
            None => return false,
        }
    }
}

#[tokio::test]
async fn a_breach_of_a_stream_costs_the_stream() {
    let (server, _node) = start();
    let mut client = sleeping(&server).await;
    client.send(99, b"never opened", Part::Middle).await;
    assert_eq!(client.next().await, reset(99, 2));
    client.send(3, b"", Part::Last).await;
    client.send(3, b"after the end", Part::Middle).await;
    assert_eq!(client.next().await, reset(3, 9));
    client.control(&Control::WindowUpdate { id: 5, delta: i32::MAX as u32 }).await;
    assert_eq!(client.next().await, reset(5, 7));
    client.open_as(7, &[("streamType", "stdin")]).await;
    assert_eq!(client.next().await, reset(7, 1));
    client.control(&Control::RstStream { id: 55, status: 1 }).await;
    client.control(&Control::Unknown(77)).await;
    client.control(&Control::Ping(2)).await;
    client.control(&Control::Ping(3)).await;
    assert_eq!(client.next().await, Some(Said::Control(Control::Ping(3))), "the connection still serves");
}

#[tokio::test]
async fn a_breach_of_the_connection_costs_the_connection() {
    let (server, node) = start();
    let check = async |name: &str, bytes: &[u8]| {
        let mut client = sleeping(&server).await;
        client.raw(bytes).await;
        assert!(goes_away(&mut client).await, "{name}");
        node.gone.notified().await;
    };
    let frame = |control: Control| {
        let mut buffer = BytesMut::new();
        control.put(&mut buffer);
        buffer.freeze()
    };
    let syn = |id, block| frame(Control::SynStream { id, part: Part::Middle, block });
    check("version 2", b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01").await;
    check("a control frame of 16 MiB", b"\x80\x03\0\x01\0\xff\xff\xff").await;
    check("a short control frame", b"\x80\x03\0\x03\0\0\0\x04\0\0\0\x01").await;
    check("an even number", &syn(8, Bytes::new())).await;
    check("no number", &syn(0, Bytes::new())).await;
    check("a number that went by", &syn(5, Bytes::new())).await;
    check("a block that is not deflated", &syn(9, Bytes::from_static(b"nonsense"))).await;
    check("a window beyond all bounds", &frame(Control::Settings(vec![(7, u32::MAX)]))).await;
    let huge = "x".repeat(8 << 20);
    let bomb = Deflater::new().block(&[("streamtype", &huge)]);
    check("a bomb in a block", &syn(9, bomb)).await;
}

#[tokio::test]
async fn a_flood_of_streams_is_ended() {
    let (server, node) = start();
    let mut client = sleeping(&server).await;
    let mut deflater = Vec::new();
    for _stream in 0..1001 {
        client.open(&[("streamType", "stdin")]).await;
        deflater.push(client.next().await);
    }
    assert!(
        deflater[..1000].iter().all(|said| matches!(said, Some(Said::Control(Control::RstStream { .. }))))
    );
    node.gone.notified().await;
}

#[tokio::test]
async fn a_flood_without_reading_pushes_back() {
    let (server, node) = start();
    let mut client = sleeping(&server).await;
    let mut pings = BytesMut::new();
    for number in 0..8192 {
        Control::Ping(2 * number + 1).put(&mut pings);
    }
    // Every ping would be answered; nobody reads, so at some time the server takes no more.
    let flood = async {
        loop {
            client.raw(&pings).await;
        }
    };
    let mut taken = tokio::time::timeout(Duration::from_millis(700), flood).await;
    assert!(taken.is_err(), "{:?}", taken.as_mut().err());
    drop(client);
    node.gone.notified().await;
}

/// Runs a connection on these bytes; it must end, whatever they are.
async fn survive(bytes: Vec<u8>) {
    let node = Arc::new(Node::default());
    let (client, server) = tokio::io::duplex(1 << 20);
    let limits = Limits::new(Duration::from_secs(60), Duration::from_millis(10));
    let hangup = Hangup::Carrier(tokio_util::sync::CancellationToken::new());
    let session = |arrivals, handle| {
        crate::streaming::portforward::over_spdy(
            node,
            "p".into(),
            arrivals,
            handle,
            Duration::from_millis(10),
        )
    };
    let serve = spdy::serve(tokio::io::split(server), hangup, limits, session);
    let feed = async {
        let (mut read, mut write) = tokio::io::split(client);
        let _closed = write.write_all(&bytes).await;
        let _closed = write.shutdown().await;
        tokio::io::copy(&mut read, &mut tokio::io::sink()).await
    };
    let (_fed, ()) = tokio::join!(feed, serve);
}

/// A conversation that an honest client could have.
fn honest() -> Vec<u8> {
    let mut deflater = Deflater::new();
    let mut buffer = BytesMut::new();
    for (id, half) in [(1, "error"), (3, "data"), (5, "error"), (7, "data")] {
        let block = deflater.block(&[("streamtype", half), ("port", "80"), ("requestid", "1")]);
        Control::SynStream { id, part: Part::from(half == "error"), block }.put(&mut buffer);
    }
    buffer.put_slice(b"\0\0\0\x03\x01\0\0\x05hello");
    Control::Ping(1).put(&mut buffer);
    Control::Settings(vec![(7, 100), (4, 5)]).put(&mut buffer);
    Control::WindowUpdate { id: 3, delta: 50 }.put(&mut buffer);
    Control::Headers { id: 7, part: Part::Last, block: deflater.block(&[]) }.put(&mut buffer);
    Control::RstStream { id: 7, status: 5 }.put(&mut buffer);
    Control::GoAway { last_good: 0, status: 0 }.put(&mut buffer);
    buffer.to_vec()
}

proptest! {
    #[test]
    fn no_conversation_breaks_the_connection(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = honest();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        bytes.extend(tail);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(30), survive(bytes)).await.expect("the connection ends");
        });
    }
}

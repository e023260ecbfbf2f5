//! The whole server with a node that is played, and clients that keep or break the rules.

mod channels;
mod commands;
mod floods;
mod forwards;
mod node;
mod refusals;
mod tls;

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::mux::Part;
use super::session::{Attach, Exec, Wiring};
use super::{Request, Streaming, spdy, websocket};
use crate::config::StreamingConfig;
use node::Node;

type Spdy = spdy::client::Client<BufReader<OwnedReadHalf>, OwnedWriteHalf>;
type WebSocket = websocket::client::Client<BufReader<OwnedReadHalf>, OwnedWriteHalf>;

const ALL: Wiring = Wiring { tty: false, stdin: true, stdout: true, stderr: true };
const TERMINAL: Wiring = Wiring { tty: true, stdin: true, stdout: true, stderr: false };

/// A server and its node.
fn start() -> (Streaming, Arc<Node>) {
    start_with(StreamingConfig::default())
}

/// A server that waits no longer than a second for streams.
fn start_impatient() -> (Streaming, Arc<Node>) {
    start_with(StreamingConfig { stream_creation_timeout_s: 1, ..StreamingConfig::default() })
}

fn start_with(config: StreamingConfig) -> (Streaming, Arc<Node>) {
    let node = Arc::new(Node::default());
    (Streaming::start(&config, node.clone()).unwrap(), node)
}

fn exec(command: &str, wiring: Wiring) -> Request {
    let command = command.split(' ').map(str::to_owned).collect();
    Request::Exec(Exec { container_id: "c1".into(), command, wiring })
}

fn attach(wiring: Wiring) -> Request {
    Request::Attach(Attach { container_id: "c1".into(), wiring })
}

fn forward(ports: &[u16]) -> Request {
    Request::PortForward { pod_id: "p1".into(), ports: ports.to_vec() }
}

/// The answer to a request with these header lines, and the connection.
async fn ask(
    url: &str,
    method: &str,
    headers: &[(&str, &str)],
) -> (Vec<String>, (BufReader<OwnedReadHalf>, OwnedWriteHalf)) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let (read, mut write) = TcpStream::connect(host).await.unwrap().into_split();
    let mut head = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    write.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    let mut read = BufReader::new(read);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        read.read_line(&mut line).await.unwrap();
        match line.trim_end() {
            "" => return (lines, (read, write)),
            line => lines.push(line.to_owned()),
        }
    }
}

/// Upgrades to SPDY with these protocols on offer.
async fn dial_spdy(url: &str, offer: &str) -> Spdy {
    let headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", offer)];
    let (answer, io) = ask(url, "POST", &headers).await;
    assert!(answer[0].starts_with("HTTP/1.1 101"), "{answer:?}");
    for line in ["connection: Upgrade", "upgrade: SPDY/3.1"] {
        assert!(answer.iter().any(|found| found == line), "{answer:?}");
    }
    let chosen = answer.iter().find_map(|line| line.strip_prefix("x-stream-protocol-version: "));
    assert_eq!(chosen, offer.split(", ").next(), "the client's first choice");
    Spdy::new(io)
}

/// Upgrades to WebSocket with this subprotocol.
async fn dial_websocket(url: &str, protocol: &str) -> WebSocket {
    let mut headers = vec![
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    headers.extend((!protocol.is_empty()).then_some(("Sec-WebSocket-Protocol", protocol)));
    let (answer, io) = ask(url, "GET", &headers).await;
    assert!(answer[0].starts_with("HTTP/1.1 101"), "{answer:?}");
    for line in ["connection: Upgrade", "upgrade: websocket"] {
        assert!(answer.iter().any(|found| found == line), "{answer:?}");
    }
    let chosen = answer.iter().find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
    assert_eq!(chosen.unwrap_or_default(), protocol);
    WebSocket::new(io)
}

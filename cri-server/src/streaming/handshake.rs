//! From an HTTP request to a session: the token, the protocol that both sides speak, and the answer.
//!
//! Pure; it must not know sockets.
#![expect(
    clippy::result_large_err,
    reason = "a refusal is an answer like the others, made once a connection"
)]

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::{Method, Response, StatusCode};

use super::remotecommand::{Command, Report, Version};
use super::tokens::{Request, Tokens};
use super::websocket::{self, Format};

/// An answer; its body is a text for people.
pub type Answer = Response<Full<Bytes>>;

/// What the client offers over SPDY.
const OFFERED: &str = "x-stream-protocol-version";
/// What the server would have taken.
const ACCEPTED: &str = "x-accepted-stream-protocol-versions";
const KEY: &str = "sec-websocket-key";
const WEBSOCKET_VERSION: &str = "sec-websocket-version";

/// SPDY subprotocols of exec and attach.
const COMMAND_VERSIONS: [(&str, Version); 4] = [
    ("v4.channel.k8s.io", Version { resize: true, report: Report::Status }),
    ("v3.channel.k8s.io", Version { resize: true, report: Report::Text }),
    ("v2.channel.k8s.io", Version { resize: false, report: Report::Text }),
    ("channel.k8s.io", Version { resize: false, report: Report::Text }),
];
/// SPDY subprotocol of port-forward.
const FORWARD_VERSIONS: [(&str, ()); 1] = [("portforward.k8s.io", ())];
/// WebSocket subprotocols of exec and attach: the form of messages, of the result, and whether the server begins.
const COMMAND_CHANNELS: [(&str, (Format, Report, bool)); 6] = [
    ("v5.channel.k8s.io", (Format::BinaryWithClose, Report::Status, false)),
    ("v4.channel.k8s.io", (Format::Binary, Report::Status, true)),
    ("v4.base64.channel.k8s.io", (Format::Base64, Report::Status, true)),
    ("channel.k8s.io", (Format::Binary, Report::Text, true)),
    ("base64.channel.k8s.io", (Format::Base64, Report::Text, true)),
    ("", (Format::Binary, Report::Text, true)),
];
/// WebSocket subprotocols of port-forward.
const FORWARD_CHANNELS: [(&str, Format); 4] = [
    ("SPDY/3.1+portforward.k8s.io", Format::Tunnel),
    ("v4.channel.k8s.io", Format::Binary),
    ("v4.base64.channel.k8s.io", Format::Base64),
    ("", Format::Binary),
];

/// What a connection is for once it is upgraded.
#[derive(Debug, PartialEq, Eq)]
pub enum Session {
    /// A command over SPDY.
    Command(Command, Version),
    /// A command over WebSocket: the result's form, and whether the server says that it is ready.
    CommandChannels(Command, Format, (Report, bool)),
    /// Port-forward over SPDY.
    Forward(String),
    /// Port-forward over WebSocket.
    ForwardChannels(String, Vec<u16>, Format),
    /// Port-forward over SPDY inside WebSocket.
    ForwardTunnel(String),
}

/// Takes the token of a request and chooses the protocol.
pub fn shake(method: &Method, path: &str, headers: &HeaderMap, tokens: &Tokens) -> (Answer, Option<Session>) {
    if *method != Method::GET && *method != Method::POST {
        return (refusal(StatusCode::METHOD_NOT_ALLOWED, "expected GET or POST"), None);
    }
    let Some(request) = request(path, tokens) else {
        let text = "no such session: a URL serves once, for a minute";
        return (refusal(StatusCode::NOT_FOUND, text), None);
    };
    let upgrades = listed(headers, "connection").any(|word| word.eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE).filter(|_| upgrades).and_then(|value| value.to_str().ok());
    let shaken = match protocol {
        Some(protocol) if protocol.eq_ignore_ascii_case("SPDY/3.1") => spdy(request, headers),
        Some(protocol) if protocol.eq_ignore_ascii_case("websocket") => websocket(request, headers),
        _other => Err(refusal(StatusCode::BAD_REQUEST, "expected an upgrade to SPDY/3.1 or websocket")),
    };
    match shaken {
        Ok((answer, session)) => (answer, Some(session)),
        Err(answer) => (answer, None),
    }
}

fn request(path: &str, tokens: &Tokens) -> Option<Request> {
    let (verb, token) = path.strip_prefix('/')?.split_once('/')?;
    tokens.take(token).filter(|request| request.verb() == verb)
}

fn spdy(request: Request, headers: &HeaderMap) -> Result<(Answer, Session), Answer> {
    let (name, session) = match request {
        Request::Exec(exec) => {
            let (name, version) = offered(headers, &COMMAND_VERSIONS)?;
            (name, Session::Command(Command::Exec(exec), version))
        }
        Request::Attach(attach) => {
            let (name, version) = offered(headers, &COMMAND_VERSIONS)?;
            (name, Session::Command(Command::Attach(attach), version))
        }
        Request::PortForward { pod_id, .. } => {
            let (name, ()) = offered(headers, &FORWARD_VERSIONS)?;
            (name, Session::Forward(pod_id))
        }
    };
    let mut answer = switching("SPDY/3.1");
    answer.headers_mut().insert(OFFERED, HeaderValue::from_static(name));
    Ok((answer, session))
}

/// The first of the client's protocols that is known here.
fn offered<T: Copy>(headers: &HeaderMap, known: &[(&'static str, T)]) -> Result<(&'static str, T), Answer> {
    if listed(headers, OFFERED).next().is_none() {
        let text = "expected a header X-Stream-Protocol-Version";
        return Err(refusal(StatusCode::BAD_REQUEST, text));
    }
    listed(headers, OFFERED).find_map(|name| find(known, name)).ok_or_else(|| {
        let mut answer = refusal(StatusCode::FORBIDDEN, "none of the offered protocols is known here");
        for (name, _) in known {
            answer.headers_mut().append(ACCEPTED, HeaderValue::from_static(name));
        }
        answer
    })
}

fn websocket(request: Request, headers: &HeaderMap) -> Result<(Answer, Session), Answer> {
    let key = headers.get(KEY).and_then(|key| key.to_str().ok()).and_then(websocket::accept);
    let Some(proof) = key.filter(|_| listed(headers, WEBSOCKET_VERSION).eq(["13"])) else {
        let mut answer = refusal(StatusCode::BAD_REQUEST, "expected a key of WebSocket's version 13");
        answer.headers_mut().insert(WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(answer);
    };
    let (name, session) = match request {
        Request::Exec(exec) => command_channels(Command::Exec(exec), headers)?,
        Request::Attach(attach) => command_channels(Command::Attach(attach), headers)?,
        Request::PortForward { pod_id, ports } => match chosen(headers, &FORWARD_CHANNELS)? {
            (name, Format::Tunnel) => (name, Session::ForwardTunnel(pod_id)),
            (_name, _channels) if ports.is_empty() => {
                return Err(refusal(StatusCode::BAD_REQUEST, "expected a request for ports"));
            }
            (name, format) => (name, Session::ForwardChannels(pod_id, ports, format)),
        },
    };
    let mut answer = switching("websocket");
    let proof = HeaderValue::try_from(proof).expect("base64 is a header's value");
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, proof);
    if !name.is_empty() {
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((answer, session))
}

fn command_channels(command: Command, headers: &HeaderMap) -> Result<(&'static str, Session), Answer> {
    let (name, (format, report, greets)) = chosen(headers, &COMMAND_CHANNELS)?;
    Ok((name, Session::CommandChannels(command, format, (report, greets))))
}

/// The first of the client's subprotocols that is known here; without any the one without a name.
fn chosen<T: Copy>(headers: &HeaderMap, known: &[(&'static str, T)]) -> Result<(&'static str, T), Answer> {
    let mut names = listed(headers, "sec-websocket-protocol").peekable();
    let found =
        if names.peek().is_none() { find(known, "") } else { names.find_map(|name| find(known, name)) };
    found.ok_or_else(|| refusal(StatusCode::FORBIDDEN, "none of the offered subprotocols is known here"))
}

fn find<T: Copy>(known: &[(&'static str, T)], wanted: &str) -> Option<(&'static str, T)> {
    known.iter().find(|(name, _)| *name == wanted).copied()
}

/// Words of a header that is a list, in any number of lines.
fn listed<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',').map(str::trim).filter(|word| !word.is_empty()))
}

fn switching(protocol: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    answer
}

fn refusal(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer
}

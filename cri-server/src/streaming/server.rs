//! The listener: connections, TLS, HTTP, and what carries an upgraded connection to its session.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::handshake::{Session, shake};
use super::mux::{Hangup, Limits};
use super::session::Target;
use super::tls::Certificate;
use super::tokens::{Request, Tokens};
use super::websocket::{self, Format};
use super::{portforward, remotecommand, spdy};
use crate::config::StreamingConfig;
use crate::error::Error;

/// Most connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 512;
/// How long a client may take to greet: the handshake of TLS, the head of its request.
const GREETING: Duration = Duration::from_secs(10);
/// Largest head of a request, bytes.
const HEAD: usize = 16 << 10;
/// Most headers of a request.
const HEADERS: usize = 64;
/// How long a client may take to read what is left when its command has ended.
const FINISH: Duration = Duration::from_secs(600);
/// A silent connection is probed after this time, to notice hosts that went without a word.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The streaming server. It ends, with all its sessions, when this is dropped.
pub struct Streaming {
    base: String,
    tokens: Arc<Tokens>,
    _listening: AbortOnDropHandle<()>,
}

/// What every connection needs.
struct Shared<T> {
    target: Arc<T>,
    tokens: Arc<Tokens>,
    certificate: Option<Certificate>,
    idle: Duration,
    patience: Duration,
}

impl Streaming {
    /// Listens, and serves `target` to who has a URL. To be called inside a runtime.
    pub fn start<T: Target>(config: &StreamingConfig, target: Arc<T>) -> anyhow::Result<Self> {
        let certificate = match (&config.tls_cert, &config.tls_key) {
            (Some(certificate), Some(key)) => Some(Certificate::load(certificate, key)?),
            _plain => None,
        };
        let scheme = if certificate.is_some() { "https" } else { "http" };
        let (listener, address) = listen(SocketAddr::new(config.address, config.port))
            .with_context(|| format!("listen on {} port {} for streams", config.address, config.port))?;
        let tokens = Arc::<Tokens>::default();
        let shared = Arc::new(Shared {
            target,
            tokens: tokens.clone(),
            certificate,
            idle: Duration::from_secs(config.idle_timeout_s),
            patience: Duration::from_secs(config.stream_creation_timeout_s),
        });
        let listening = AbortOnDropHandle::new(tokio::spawn(accept(listener, shared)));
        Ok(Self { base: format!("{scheme}://{address}"), tokens, _listening: listening })
    }

    /// A URL that serves `request` once, within a minute. Fails with [`Error::TooMany`] when 1000 are waiting.
    pub fn url_for(&self, request: Request) -> Result<String, Error> {
        let verb = request.verb();
        Ok(format!("{}/{verb}/{}", self.base, self.tokens.put(request)?))
    }
}

fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((TcpListener::from_std(listener)?, address))
}

async fn accept<T: Target>(listener: TcpListener, shared: Arc<Shared<T>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        while connections.try_join_next().is_some() {}
        let socket = match listener.accept().await {
            Ok((socket, _client)) => socket,
            Err(error) => {
                tracing::warn!(%error, "a streaming connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let shared = shared.clone();
        connections.spawn(async move {
            if let Err(error) = connect(socket, &shared).await {
                tracing::debug!(error = format!("{error:#}"), "a streaming connection has failed");
            }
            drop(place);
        });
    }
}

/// One connection, from the socket to the end of its session.
async fn connect<T: Target>(socket: TcpStream, shared: &Shared<T>) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE / 4)?;
    sockopt::set_tcp_keepcnt(&socket, 4)?;
    let hangup = Hangup::of(&socket)?;
    let upgrade = match &shared.certificate {
        None => greet(socket, &shared.tokens).await?,
        Some(certificate) => {
            let accepted = tokio::time::timeout(GREETING, certificate.acceptor().accept(socket));
            greet(accepted.await.context("the handshake of TLS takes too long")??, &shared.tokens).await?
        }
    };
    let Some((session, upgrade)) = upgrade else { return Ok(()) };
    let (read, write) = tokio::io::split(TokioIo::new(upgrade.await?));
    serve(session, (read, write), hangup, shared).await;
    Ok(())
}

/// Answers one request; the session that it asks for, if it may have it.
async fn greet(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    tokens: &Tokens,
) -> anyhow::Result<Option<(Session, OnUpgrade)>> {
    let slot = Mutex::new(None);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        let (answer, session) = shake(request.method(), request.uri().path(), request.headers(), tokens);
        let upgrade = session.map(|session| (session, hyper::upgrade::on(&mut request)));
        *slot.lock().expect("no code that holds the slot panics") = upgrade;
        std::future::ready(Ok::<_, std::convert::Infallible>(answer))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await?;
    Ok(slot.into_inner().expect("no code that holds the slot panics"))
}

/// Runs a session on its upgraded connection.
async fn serve<T: Target, R, W>(session: Session, io: (R, W), hangup: Hangup, shared: &Shared<T>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Shared { target, patience, idle, .. } = shared;
    let (target, patience, limits) = (target.clone(), *patience, Limits::new(*idle, FINISH));
    match session {
        Session::Command(command, version) => {
            let session = |arrivals, handle| {
                remotecommand::over_spdy(target, (command, version), arrivals, handle, patience)
            };
            spdy::serve(io, hangup, limits, session).await;
        }
        Session::CommandChannels(command, format, (report, greets)) => {
            let session = |streams, handle| {
                remotecommand::over_websocket(target, (command, report, greets), streams, handle)
            };
            websocket::serve(io, format, (hangup, limits), remotecommand::CHANNELS, session).await;
        }
        Session::Forward(pod) => {
            let session = |arrivals, handle| portforward::over_spdy(target, pod, arrivals, handle, patience);
            spdy::serve(io, hangup, limits, session).await;
        }
        Session::ForwardChannels(pod, ports, format) => {
            let channels = 2 * ports.len() as u32;
            let session = |streams, handle| portforward::over_websocket(target, pod, ports, streams, handle);
            websocket::serve(io, format, (hangup, limits), channels, session).await;
        }
        Session::ForwardTunnel(pod) => tunnel(target, pod, io, (hangup, limits), patience).await,
    }
}

/// Port-forward over SPDY inside one stream of WebSocket.
async fn tunnel<T: Target, R, W>(
    target: Arc<T>,
    pod: String,
    io: (R, W),
    (hangup, limits): (Hangup, Limits),
    patience: Duration,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let inner = limits.clone();
    let carried = |mut streams: Vec<super::mux::Stream>, outer: super::mux::Handle| async move {
        let Some(stream) = streams.pop() else { return };
        let carrier = Hangup::Carrier(outer.gone());
        let session = |arrivals, handle| portforward::over_spdy(target, pod, arrivals, handle, patience);
        spdy::serve((stream.reader, stream.writer), carrier, inner, session).await;
        outer.finish().await;
    };
    websocket::serve(io, Format::Tunnel, (hangup, limits), 1, carried).await;
}

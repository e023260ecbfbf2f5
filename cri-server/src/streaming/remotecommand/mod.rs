//! Exec and attach: which streams a client opens, and how it learns the result (`remotecommand` of Kubernetes).

mod resize;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::mux::{Arrived, Handle, Reader, Stream, Writer};
use super::session::{Attach, Exec, Streams, Target, Wiring};
use super::spdy::reset;
use crate::error::{Error, chain};
pub use status::Report;

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start a process.
    Exec(Exec),
    /// Join a container.
    Attach(Attach),
}

/// Version of the protocol, as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Whether the client opens a stream for the sizes of its terminal.
    pub resize: bool,
    /// How it learns the result.
    pub report: Report,
}

/// Channels of a WebSocket connection: stdin, stdout, stderr, error, resize.
pub const CHANNELS: u32 = 5;

impl Command {
    fn wiring(&self) -> Wiring {
        match self {
            Self::Exec(exec) => exec.wiring,
            Self::Attach(attach) => attach.wiring,
        }
    }
}

/// What the streams of a client are called in `streamType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Stdin,
    Stdout,
    Stderr,
    Error,
    Resize,
}

impl Role {
    /// In the order of WebSocket's channels.
    const ALL: [Self; CHANNELS as usize] =
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize];

    fn of(name: &str) -> Option<Self> {
        match name {
            "stdin" => Some(Self::Stdin),
            "stdout" => Some(Self::Stdout),
            "stderr" => Some(Self::Stderr),
            "error" => Some(Self::Error),
            "resize" => Some(Self::Resize),
            _unknown => None,
        }
    }

    fn is_wanted(self, wiring: Wiring, version: Version) -> bool {
        match self {
            Self::Stdin => wiring.stdin,
            Self::Stdout => wiring.stdout,
            Self::Stderr => wiring.stderr,
            Self::Error => true,
            Self::Resize => wiring.tty && version.resize,
        }
    }
}

/// Serves a command to a client that opens its streams itself. Waits for them no longer than `patience`.
pub async fn over_spdy<T: Target>(
    target: Arc<T>,
    (command, version): (Command, Version),
    mut arrivals: mpsc::Receiver<Arrived>,
    handle: Handle,
    patience: Duration,
) {
    let mut opened = BTreeMap::new();
    let gather = gather(&mut arrivals, command.wiring(), version, &mut opened);
    let gathered = tokio::time::timeout(patience, gather).await;
    // Whatever is opened later is refused.
    drop(arrivals);
    match gathered {
        Ok(Gathered::All) => run(target, command, version.report, opened, &handle).await,
        Ok(Gathered::ClientLeft) => {}
        Err(_elapsed) => {
            let stage = "waiting for the client to open its streams".into();
            let late = Error::DeadlineExceeded { stage, seconds: patience.as_secs() };
            tracing::warn!(error = %late, "a streaming session is given up");
            handle.hurry();
            if let Some(error) = opened.get_mut(&Role::Error) {
                report(&mut error.writer, version.report.failure(&chain(&late))).await;
            }
            drop(opened);
        }
    }
    handle.finish().await;
}

/// Serves a command to a client whose `streams` are channels.
pub async fn over_websocket<T: Target>(
    target: Arc<T>,
    (command, report, greets): (Command, Report, bool),
    streams: Vec<Stream>,
    handle: Handle,
) {
    let wiring = command.wiring();
    let version = Version { resize: true, report };
    let opened: BTreeMap<_, _> =
        Role::ALL.into_iter().zip(streams).filter(|(role, _)| role.is_wanted(wiring, version)).collect();
    let writable = [Role::Stdout, Role::Stderr, Role::Error];
    let first = writable.into_iter().find_map(|role| opened.get(&role)).filter(|_| greets);
    if let Some(first) = first {
        // An empty message tells the client that the connection stands.
        handle.say(super::mux::Outgoing::Piece(first.id, bytes::Bytes::new())).await;
    }
    run(target, command, report, opened, &handle).await;
    handle.finish().await;
}

/// How the wait for streams ended.
enum Gathered {
    All,
    ClientLeft,
}

/// Takes the streams that are wanted.
async fn gather(
    arrivals: &mut mpsc::Receiver<Arrived>,
    wiring: Wiring,
    version: Version,
    opened: &mut BTreeMap<Role, Stream>,
) -> Gathered {
    let wanted = Role::ALL.into_iter().filter(|role| role.is_wanted(wiring, version)).count();
    while opened.len() < wanted {
        let Some(arrived) = arrivals.recv().await else { return Gathered::ClientLeft };
        let role = arrived.headers.get("streamtype").and_then(|name| Role::of(name));
        match role.filter(|role| role.is_wanted(wiring, version) && !opened.contains_key(role)) {
            Some(role) => {
                opened.insert(role, arrived.accept().await);
            }
            None => arrived.refuse(reset::REFUSED_STREAM).await,
        }
    }
    Gathered::All
}

/// Runs the command and reports its result. All streams have ended towards the client when this returns.
async fn run<T: Target>(
    target: Arc<T>,
    command: Command,
    form: Report,
    mut opened: BTreeMap<Role, Stream>,
    handle: &Handle,
) {
    let Some(Stream { writer: mut error, .. }) = opened.remove(&Role::Error) else { return };
    // The client takes the end of the other direction of stdin for the end of the command, so it is kept open.
    let mut kept: Vec<Writer> = Vec::new();
    let mut read = |role| {
        let Stream { reader, writer, .. } = opened.remove(&role)?;
        kept.push(writer);
        Some(reader)
    };
    let (stdin, resize) = (read(Role::Stdin), read(Role::Resize));
    let mut write = |role| {
        let writer = opened.remove(&role)?.writer;
        Some(Box::new(writer) as Box<dyn AsyncWrite + Send + Unpin>)
    };
    let (sizes, receiver) = mpsc::channel(1);
    let streams = Streams {
        stdin: stdin.map(|reader| Box::new(reader) as Box<_>),
        stdout: write(Role::Stdout),
        stderr: write(Role::Stderr),
        resize: receiver,
        gone: handle.gone(),
    };
    let answer = execute(&*target, command, streams);
    let said = tokio::select! {
        said = answer => said.map_or_else(|error| form.failure(&error), |code| form.exit(code)),
        never = watch_sizes(resize, sizes, handle) => match never {},
    };
    handle.hurry();
    report(&mut error, said).await;
}

/// The exit code, 0 where there is none, or what to tell the client.
async fn execute<T: Target>(target: &T, command: Command, streams: Streams) -> Result<i32, String> {
    let (id, result) = match command {
        Command::Exec(exec) => (exec.container_id.clone(), target.exec(exec, streams).await),
        Command::Attach(attach) => {
            (attach.container_id.clone(), target.attach(attach, streams).await.map(|()| 0))
        }
    };
    result.map_err(|error| {
        let error = chain(&error);
        tracing::warn!(container = id, error, "a streaming session has failed");
        error
    })
}

/// Passes the sizes of the client's terminal on, and keeps their channel open for as long as the session.
async fn watch_sizes(
    resize: Option<Reader>,
    sizes: mpsc::Sender<super::session::TerminalSize>,
    handle: &Handle,
) -> std::convert::Infallible {
    if let Some(reader) = resize {
        resize::follow(reader, &sizes).await;
    }
    handle.table().gone.cancelled().await;
    drop(sizes);
    std::future::pending().await
}

/// Writes the result; a client that is gone does not need it.
async fn report(error: &mut Writer, text: Option<String>) {
    if let Some(text) = text {
        let _gone = error.write_all(text.as_bytes()).await;
    }
    let _gone = error.shutdown().await;
}

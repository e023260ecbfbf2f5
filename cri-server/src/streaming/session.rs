//! What a stream is for and what flows in it, whatever protocol carries it.
//!
//! The protocols make a [`Streams`] and hand it to a [`Target`]; they must not know containers, it must not know them.

use std::future::Future;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::error::Error;

/// The node, as streams see it.
pub trait Target: Send + Sync + 'static {
    /// Runs a process in a container until it has ended and its output is drained or the client is gone; then the
    /// process is killed. Returns the exit code.
    fn exec(&self, session: Exec, streams: Streams) -> impl Future<Output = Result<i32, Error>> + Send;

    /// Joins the main process of a container until it ends or the client goes; the container is not touched by that.
    fn attach(&self, session: Attach, streams: Streams) -> impl Future<Output = Result<(), Error>> + Send;

    /// Connects to `port` of loopback inside a pod's network namespace.
    fn connect(&self, pod_id: &str, port: u16) -> impl Future<Output = Result<TcpStream, Error>> + Send;
}

/// A process to start. The container ran when the token was made; it may have ended since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Full id of the container.
    pub container_id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// What is wired.
    pub wiring: Wiring,
}

/// A container to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// Full id of the container.
    pub container_id: String,
    /// What is wired.
    pub wiring: Wiring,
}

/// Which streams a client opens. At least one; stderr not with a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wiring {
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Client to process.
    pub stdin: bool,
    /// Process to client.
    pub stdout: bool,
    /// Process to client.
    pub stderr: bool,
}

/// Ends of the streams that the client opened, as [`Wiring`] says.
pub struct Streams {
    /// Ends when the client half-closes it or is gone.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Shutting it down half-closes it towards the client. Writing waits for the client; fails when it is gone.
    pub stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Like stdout.
    pub stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Sizes of the client's terminal, the newest counts. Ends with the client.
    pub resize: mpsc::Receiver<TerminalSize>,
    /// Done when the client is gone.
    pub gone: tokio_util::sync::CancellationToken,
}

/// Size of a terminal in characters; neither is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

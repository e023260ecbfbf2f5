//! What can go wrong between the daemon and a monitor.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::monitor::protocol::{self, Answer, Failure};

/// Why a monitor could not do something.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The monitor's program cannot be executed.
    #[error("starting the monitor {}", binary.display())]
    Spawn {
        /// Its path.
        binary: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The monitor could not make the sandbox; its `kind` tells the sort.
    #[error("setting up the sandbox")]
    Setup(#[source] Failure),
    /// Nobody listens at the socket, or it does not exist: there is no monitor.
    #[error("no monitor at {}", socket.display())]
    NoMonitor {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be used.
    #[error("attaching to the monitor at {}", socket.display())]
    Attach {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The monitor speaks another version of the protocol.
    #[error("the monitor of pod {pod} speaks protocol {theirs}, this daemon speaks {}", protocol::VERSION)]
    Version {
        /// The pod.
        pod: String,
        /// What it speaks.
        theirs: u32,
    },
    /// The monitor did the call and it failed; its `kind` tells the sort.
    #[error("{stage}")]
    Refused {
        /// What was being done.
        stage: &'static str,
        /// Why.
        #[source]
        failure: Failure,
    },
    /// The monitor did not answer in time. It may still do what it was asked to do.
    #[error("{stage}: no answer from the monitor within {} s", limit.as_secs())]
    Deadline {
        /// What was being done.
        stage: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection ended before the answer came: the monitor has died, or is about to be found again.
    #[error("{stage}: the connection to the monitor was lost")]
    Lost {
        /// What was being done.
        stage: &'static str,
    },
    /// The monitor does not keep to the protocol.
    #[error("{stage}: the monitor answered {answer}")]
    Unexpected {
        /// What was being done.
        stage: &'static str,
        /// What came.
        answer: String,
    },
    /// The call cannot be put into a frame.
    #[error("{stage}: encoding the call")]
    Encode {
        /// What was being done.
        stage: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl MonitorError {
    pub(super) fn attach(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NoMonitor { socket, source },
            _ => Self::Attach { socket, source },
        }
    }

    pub(super) fn unexpected(stage: &'static str, answer: &Answer) -> Self {
        Self::Unexpected { stage, answer: format!("{answer:?}") }
    }
}

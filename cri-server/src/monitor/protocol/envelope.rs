//! What carries calls, answers and events, and what a refusal says.

use serde::{Deserialize, Serialize};

use super::{Answer, Call, Event, PodSetup};
use crate::model::id::PodId;

/// First frame of a monitor: in answer to [`ToMonitor::Hello`], or when the setup is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`](super::VERSION) of the monitor.
    pub version: u32,
    /// Whose monitor this is.
    pub pod_id: PodId,
    /// Process id of the monitor.
    pub monitor_pid: i32,
    /// Process id of the pod's init, if there is one.
    pub pod_init: Option<i32>,
}

/// A frame from the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToMonitor {
    /// First frame of a connection to a monitor that is up.
    Hello { version: u32 },
    /// First frame of the connection that a monitor is born with.
    Setup { version: u32, setup: PodSetup },
    /// A call; the answer carries the same number.
    Call { number: u64, call: Call },
}

/// A frame from the monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromMonitor {
    /// The connection is good.
    Welcome(Welcome),
    /// The setup failed, and nothing of it is left.
    SetupFailed(Failure),
    /// A call succeeded.
    Answer { number: u64, answer: Answer },
    /// A call failed.
    Failed { number: u64, failure: Failure },
    /// Something happened.
    Event(Event),
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

impl Failure {
    /// A failure of `kind` with a readable `message`.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// An error of the operating system while doing `what`.
    pub fn io(what: impl std::fmt::Display, error: impl Into<std::io::Error>) -> Self {
        Self::new(FailureKind::Internal, format!("{what}: {}", error.into()))
    }
}

/// Sorts of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No such container or exec.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The request makes no sense.
    InvalidArgument,
    /// The container is not in the state that the call needs.
    FailedPrecondition,
    /// The OCI runtime refused, or ended without success; the message is its own.
    Runtime,
    /// The OCI runtime cannot be executed.
    RuntimeMissing,
    /// Ended by a delete or a shutdown.
    Aborted,
    /// The monitor is older than the call.
    Unsupported,
    /// Anything else.
    #[serde(other)]
    Internal,
}

//! One container: its phase, its streams, and what waits for its end.
//!
//! ```text
//! Creating ─▶ Alive (created, then running) ─▶ Ending (record being saved) ─▶ Ended ─▶ deleted
//! ```
//! At most one run of the OCI runtime concerns a container at a time (execs apart); a deletion ends it.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use super::attachment::Attachment;
use super::connection::ReplyTo;
use super::invocation::InvocationId;
use super::log::LogFile;
use super::oom::Kills;
use super::output::Output;
use super::protocol::{ContainerState, ContainerStatus, CreateContainer, Failure};
use super::record::ExitRecord;
use crate::host::program::ProgramCopy;

/// Bytes kept of what the OCI runtime writes into the container's pipes while it creates.
pub const MAX_CAPTURE: usize = 8 << 10;

/// A container.
#[derive(Debug)]
pub struct Container {
    /// As the daemon asked for it.
    pub spec: CreateContainer,
    /// The copy of the OCI runtime that is run for it.
    pub program: Option<Rc<ProgramCopy>>,
    /// How far it is.
    pub phase: Phase,
    /// The run of the OCI runtime that concerns it.
    pub invocation: Option<InvocationId>,
    /// Its log.
    pub log: LogFile,
    /// What is still read from it.
    pub outputs: Vec<Output>,
    /// The writing end of its standard input, for attach; `None` also once it was given away.
    pub stdin: Option<OwnedFd>,
    /// The master of its terminal, for attach.
    pub terminal: Option<OwnedFd>,
    /// Clients that get copies of its output.
    pub attachments: Vec<Attachment>,
    /// What the OCI runtime said through its pipes.
    pub captured: Vec<u8>,
    /// Out-of-memory kills in its cgroup before it ran.
    pub oom_baseline: u64,
    /// Who wants it gone.
    pub deletion: Option<Deletion>,
    /// When its streams are given up, where something keeps them open after its end.
    pub linger_until: Option<Instant>,
}

/// How far a container is.
#[derive(Debug)]
pub enum Phase {
    /// The OCI runtime makes it, or has failed to and cleans up.
    Creating,
    /// Its main process exists.
    Alive(Process),
    /// Its main process is gone; the record is on its way to disk.
    Ending { pid: i32, record: ExitRecord },
    /// Reported.
    Ended { record: ExitRecord, saved: bool },
}

/// A main process.
#[derive(Debug)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// To signal it.
    pub pidfd: OwnedFd,
    /// When the OCI runtime had made it.
    pub created_at_ns: i64,
    /// Whether it was started.
    pub start: Start,
}

/// How far a start is. Times are nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nobody has asked for it, or it failed.
    Pending,
    /// The OCI runtime was told to at this time, and has not ended: the process may run or not.
    Asked(i64),
    /// It was started at this time.
    Done(i64),
}

impl Start {
    /// When the process began to run, as far as it has.
    pub fn at(self) -> Option<i64> {
        match self {
            Self::Pending => None,
            Self::Asked(at) | Self::Done(at) => Some(at),
        }
    }
}

/// A deletion under way.
#[derive(Debug, Default)]
pub struct Deletion {
    /// Who waits for it.
    pub waiters: Vec<ReplyTo>,
    /// The create that failed and is cleaned up after.
    pub failed_create: Option<(Option<ReplyTo>, Failure)>,
    /// Whether the OCI runtime has done its part.
    pub runtime_done: bool,
}

impl Container {
    /// As told to a daemon.
    pub fn state(&self) -> ContainerState {
        let alive = |pid, started| match started {
            None => ContainerStatus::Created { pid },
            Some(started_at_ns) => ContainerStatus::Running { pid, started_at_ns },
        };
        let status = match &self.phase {
            Phase::Creating => ContainerStatus::Creating,
            // A start under way may fail yet.
            Phase::Alive(Process { pid, start: Start::Done(at), .. }) => alive(*pid, Some(*at)),
            Phase::Alive(process) => alive(process.pid, None),
            // An exit is not told before its record is on disk.
            Phase::Ending { pid, record } => alive(*pid, record.started_at_ns),
            Phase::Ended { record, saved } => {
                // Identities are of any size; all of them together might not fit into one frame.
                let record = ExitRecord { identity: serde_json::Value::Null, ..record.clone() };
                ContainerStatus::Exited { record, saved: *saved }
            }
        };
        ContainerState { id: self.spec.id.to_string(), status, log_bytes_lost: self.log.bytes_lost() }
    }

    /// Tasks of it killed for want of memory so far.
    pub fn oom_kills(&self) -> Kills {
        Kills::read(self.spec.cgroup.oom_counter.as_deref(), self.oom_baseline)
    }

    /// Keeps a bounded part of the OCI runtime's own output.
    pub fn capture(&mut self, bytes: &[u8]) {
        let room = MAX_CAPTURE.saturating_sub(self.captured.len());
        self.captured.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

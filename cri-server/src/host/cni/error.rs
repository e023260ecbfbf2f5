//! What can go wrong when CNI plugins are called. Knows neither gRPC nor files.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use super::conf::NoNetwork;
use crate::model::id::PodId;

/// Why an operation on a pod's network did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The configuration directory holds no usable network (failed precondition).
    #[error("no CNI network to use")]
    NoNetwork(#[source] NoNetwork),
    /// The caller's description of the pod cannot be passed to plugins (invalid argument).
    #[error("cannot pass {field} {value:?} to CNI plugins: {reason}")]
    InvalidAttachment {
        /// Name of the offending field or annotation.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// ADD was asked for a pod whose earlier attachment was not undone yet (already exists).
    #[error("pod {pod} has an attachment to network {network} already")]
    AlreadyAttached {
        /// The pod.
        pod: PodId,
        /// Name of the network.
        network: String,
    },
    /// CHECK was asked for a pod that has no finished attachment (not found).
    #[error("pod {0} is attached to no network")]
    NotAttached(PodId),
    /// ADD failed and its effects were undone, as far as `failures` does not say otherwise.
    #[error("attaching pod {pod} to network {network}")]
    Add {
        /// The pod.
        pod: PodId,
        /// Name of the network.
        network: String,
        /// First the failure of ADD, then those of the DEL that followed it.
        #[source]
        failures: Failures,
    },
    /// DEL failed; the record stays, so that it can be repeated.
    #[error("detaching pod {pod} from its networks")]
    Del {
        /// The pod.
        pod: PodId,
        /// What failed, in order.
        #[source]
        failures: Failures,
    },
    /// CHECK found damage, or failed.
    #[error("checking pod {pod} on network {network}")]
    Check {
        /// The pod.
        pod: PodId,
        /// Name of the network.
        network: String,
        /// The first failure.
        #[source]
        failures: Failures,
    },
    /// GC failed for some plugins; the others did it.
    #[error("collecting garbage of network {network}")]
    Gc {
        /// Name of the network.
        network: String,
        /// What failed, in order.
        #[source]
        failures: Failures,
    },
    /// GC excludes all other operations and one of them is running (unavailable; try again later).
    #[error("CNI garbage collection waits for running operations")]
    GcBusy,
    /// A repair excludes all other operations, and one of them takes long (unavailable; try again later).
    #[error("the repair of rules waits for running operations")]
    RepairBusy,
    /// Lost rules of attachments could not all be made again.
    #[error("repairing the rules of attachments")]
    Repair(#[source] Failures),
    /// A record of an attachment could not be read or written (internal).
    #[error("{action} the CNI record {}", path.display())]
    Record {
        /// What was being done to it.
        action: &'static str,
        /// The record's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The verbs of the CNI specification that a runtime uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Verify an attachment.
    Check,
    /// Release what no valid attachment owns.
    Gc,
    /// Tell whether ADD would work.
    Status,
    /// Make lost rules again: Berth's own, none of the specification's.
    Repair,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Repair => "repair",
        })
    }
}

/// One plugin failed at one verb.
#[derive(Debug, thiserror::Error)]
#[error("CNI plugin {plugin} failed at {verb}")]
pub struct PluginFailure {
    /// Type of the plugin.
    pub plugin: String,
    /// What it was asked for.
    pub verb: Verb,
    /// How it failed.
    #[source]
    pub cause: Cause,
}

impl PluginFailure {
    /// The error code that the plugin reported, where it reported one.
    pub fn code(&self) -> Option<u64> {
        match self.cause {
            Cause::Reported { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// How a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// It said so (CNI specification, section 5, Error). Code 11 asks to try again later.
    #[error("{msg} (code {code}){}{details}", if details.is_empty() { "" } else { ": " })]
    Reported {
        /// The plugin's error code; some plugins report 0.
        code: u64,
        /// Short message.
        msg: String,
        /// Long message, may be empty.
        details: String,
    },
    /// There is no executable of its name.
    #[error("no such executable in {}", dirs(searched))]
    Missing {
        /// Directories that were searched.
        searched: Vec<PathBuf>,
    },
    /// The operating system refused to start it.
    #[error("it cannot be started")]
    Start(#[source] io::Error),
    /// Its pipes failed.
    #[error("its input or output broke")]
    Pipe(#[source] io::Error),
    /// It did not finish in time and was killed (deadline).
    #[error("killed after {0:?} without an answer")]
    TimedOut(Duration),
    /// The caller gave up and it was killed.
    #[error("killed because the operation was aborted")]
    Aborted,
    /// It wrote more than a plugin may, and was killed.
    #[error("killed because it wrote more than {0} bytes")]
    Flood(usize),
    /// It ended unsuccessfully without a readable error.
    #[error("it ended with {status} and without a CNI error: {said:?}")]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// Beginning of what it wrote.
        said: String,
    },
    /// It ended successfully with an unusable result.
    #[error("{reason}: {said:?}")]
    Rubbish {
        /// What is wrong with the result.
        reason: String,
        /// Beginning of what it wrote.
        said: String,
    },
}

fn dirs(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Failures of one operation, in order. Its text holds each with all its causes.
#[derive(Debug)]
pub struct Failures(pub Vec<PluginFailure>);

impl Failures {
    /// What failed first.
    pub fn first(&self) -> Option<&PluginFailure> {
        self.0.first()
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failure) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; then ")?;
            }
            write!(f, "{}", chain(failure))?;
        }
        Ok(())
    }
}

impl Error for Failures {}

/// An error and all its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The beginning of what a plugin wrote, for messages.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const LIMIT: usize = 512;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LIMIT)]);
    text.trim().to_string()
}

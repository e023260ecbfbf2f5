//! States of a container.
//!
//! ```text
//! Creating ──▶ Created ──▶ Running ──▶ Exited
//!     │           └───────────────────────▲
//!     └──(failed: undone, no container remains)
//! ```

use serde::{Deserialize, Serialize};

use super::Step;

/// State of a container, as its record holds it. Times are nanoseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ContainerState {
    /// The intent: everything that the container may own by now has a name in its record.
    Creating,
    /// The OCI runtime has made it; its process waits.
    Created {
        /// Process id of the container's first process.
        pid: i32,
    },
    /// Its process runs.
    Running {
        /// Process id of the container's first process.
        pid: i32,
        /// When the process was started.
        started_at: i64,
    },
    /// Its process has ended.
    Exited(Exit),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// When the process was started; 0 if it never was.
    pub started_at: i64,
    /// When the process ended.
    pub finished_at: i64,
    /// Exit code; 128 + signal for a killed process.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled` or `Unknown`.
    pub reason: String,
    /// What a person should know beyond the reason.
    pub message: String,
}

impl Exit {
    /// How a container ended whose exit nobody saw.
    pub fn unseen(started_at: i64, now: i64, message: &str) -> Self {
        Self {
            started_at,
            finished_at: now,
            exit_code: 255,
            reason: "Unknown".into(),
            message: message.into(),
        }
    }
}

/// Why a transition is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the container is {0}")]
pub struct Denied(pub &'static str);

impl ContainerState {
    /// Process id, while there is a process.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Running { pid, .. } => Some(*pid),
            Self::Creating | Self::Exited(_) => None,
        }
    }

    /// Whether its process has ended.
    pub fn is_exited(&self) -> bool {
        matches!(self, Self::Exited(_))
    }

    /// When the process was started, 0 before that.
    pub fn started_at(&self) -> i64 {
        match self {
            Self::Creating | Self::Created { .. } => 0,
            Self::Running { started_at, .. } => *started_at,
            Self::Exited(exit) => exit.started_at,
        }
    }

    /// What a start has to do: the pid that will run. The CRI's start is not idempotent.
    pub fn start(&self) -> Result<i32, Denied> {
        match self {
            Self::Created { pid } => Ok(*pid),
            Self::Running { .. } => Err(Denied("running already")),
            Self::Creating => Err(Denied("still being created")),
            Self::Exited(_) => Err(Denied("exited")),
        }
    }

    /// What a stop has to do.
    pub fn stop(&self) -> Step<()> {
        if self.is_exited() { Step::AlreadyDone } else { Step::Do(()) }
    }

    /// The word that people see.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created { .. } => "created",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions() {
        let exited = ContainerState::Exited(Exit::unseen(1, 2, ""));
        let running = ContainerState::Running { pid: 7, started_at: 1 };
        let check = |state: &ContainerState, start: Result<i32, Denied>, stop: Step<()>| {
            assert_eq!((state.start(), state.stop()), (start, stop), "{state:?}");
        };
        check(&ContainerState::Creating, Err(Denied("still being created")), Step::Do(()));
        check(&ContainerState::Created { pid: 7 }, Ok(7), Step::Do(()));
        check(&running, Err(Denied("running already")), Step::Do(()));
        check(&exited, Err(Denied("exited")), Step::AlreadyDone);
    }
}

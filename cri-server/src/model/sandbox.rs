//! States of a pod sandbox.
//!
//! ```text
//! Creating ──▶ Ready ──▶ NotReady
//!     └───────(failed: undone, no sandbox remains)
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// State of a pod sandbox, as its record holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum SandboxState {
    /// The intent: everything that the sandbox may own by now has a name in its record.
    Creating,
    /// Namespaces and network exist.
    Ready {
        /// Addresses of the pod, the primary one first; empty in the node's network.
        ips: Vec<String>,
    },
    /// Stopped, or its monitor or its boot is gone: nothing runs in it.
    NotReady {
        /// Addresses that the pod had.
        ips: Vec<String>,
    },
}

impl SandboxState {
    /// The state after a stop.
    pub fn stopped(&self) -> Self {
        Self::NotReady { ips: self.ips().to_vec() }
    }

    /// Whether containers can be made in it.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    /// Addresses of the pod, the primary one first.
    pub fn ips(&self) -> &[String] {
        match self {
            Self::Creating => &[],
            Self::Ready { ips } | Self::NotReady { ips } => ips,
        }
    }
}

/// Which namespaces the sandbox owns, and where they are pinned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Network namespace; `None` when the pod uses the node's.
    pub net: Option<PathBuf>,
    /// IPC namespace; `None` when the pod uses the node's.
    pub ipc: Option<PathBuf>,
    /// UTS namespace; `None` when the pod uses the node's.
    pub uts: Option<PathBuf>,
    /// PID namespace that the pod's containers share; `None` when each has its own or uses the node's.
    pub pid: Option<PathBuf>,
    /// User namespace, which owns the others; `None` when the pod uses the node's.
    #[serde(default)]
    pub user: Option<PathBuf>,
}

impl Pins {
    /// Every pin that exists.
    pub fn iter(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.net, &self.ipc, &self.uts, &self.pid, &self.user].into_iter().flatten()
    }
}

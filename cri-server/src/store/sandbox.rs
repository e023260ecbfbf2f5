//! Pod sandboxes: the record, and the live object around it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use proto::cri::{PodSandboxConfig, PodSandboxMetadata};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::record::{self, RecordError};
use crate::host::cgroup::Sample;
use crate::host::fs::Durability;
use crate::host::monitor::Monitor;
use crate::model::id::PodId;
use crate::model::name::Name;
use crate::model::sandbox::{Pins, SandboxState};

/// What is on disk about a pod sandbox: enough to serve it and to undo all of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Id of the sandbox.
    pub id: PodId,
    /// The boot in which its kernel objects were made.
    pub boot_id: String,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Runtime handler as the request named it; empty for the default one.
    pub runtime_handler: String,
    /// Namespaces that it owns.
    pub pins: Pins,
    /// Parent of its containers' cgroups, as the OCI runtime takes it.
    pub cgroup_parent: String,
    /// State.
    #[serde(flatten)]
    pub state: SandboxState,
    /// Configuration as it was requested.
    #[serde(with = "super::message")]
    pub config: PodSandboxConfig,
}

impl SandboxRecord {
    /// Metadata of the configuration.
    pub fn metadata(&self) -> PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    fn name(&self) -> Name {
        let metadata = self.metadata();
        Name::sandbox(&metadata.name, &metadata.namespace, &metadata.uid, metadata.attempt)
    }
}

/// A pod sandbox in memory.
#[derive(Debug)]
pub struct Sandbox {
    /// Name, unique among live sandboxes.
    pub name: Name,
    /// Everything of the record that never changes; its `state` is the one at the start of this object's life.
    pub fixed: SandboxRecord,
    /// Held by the one operation that changes the sandbox.
    pub operation: tokio::sync::Mutex<()>,
    /// Cancelled once to make an operation in flight give up.
    pub abort: CancellationToken,
    /// Processor time when it was last asked for.
    pub sample: Mutex<Option<Sample>>,
    /// Set when nothing of this boot is left of it but its records.
    pub released: OnceLock<()>,
    /// The monitor, while there is one.
    pub monitor: RwLock<Option<Monitor>>,
    state: watch::Sender<SandboxState>,
    directory: PathBuf,
    write: Mutex<()>,
}

impl Sandbox {
    /// A sandbox whose record lives in `directory`.
    pub fn new(record: SandboxRecord, directory: PathBuf) -> Arc<Self> {
        let state = watch::Sender::new(record.state.clone());
        Arc::new(Self {
            name: record.name(),
            fixed: record,
            operation: tokio::sync::Mutex::default(),
            abort: CancellationToken::new(),
            sample: Mutex::default(),
            released: OnceLock::new(),
            monitor: RwLock::default(),
            state,
            directory,
            write: Mutex::default(),
        })
    }

    /// Id of the sandbox.
    pub fn id(&self) -> &PodId {
        &self.fixed.id
    }

    /// The state now.
    pub fn state(&self) -> SandboxState {
        self.state.borrow().clone()
    }

    /// The monitor, while there is one.
    pub fn monitor(&self) -> Option<Monitor> {
        self.monitor.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Puts the monitor in place, or takes it away.
    pub fn set_monitor(&self, monitor: Option<Monitor>) {
        *self.monitor.write().unwrap_or_else(std::sync::PoisonError::into_inner) = monitor;
    }

    /// Writes the record with `state`, then lets readers see it.
    pub fn enter(&self, state: SandboxState) -> Result<(), RecordError> {
        let _one_writer = self.write.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let record = SandboxRecord { state: state.clone(), ..self.fixed.clone() };
        record::write(&path(&self.directory), &record, Durability::Cached)?;
        self.state.send_replace(state);
        Ok(())
    }
}

/// Where the record of a sandbox is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join("record.json")
}

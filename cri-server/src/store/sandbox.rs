//! Pod sandboxes: the record, and the live object around it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use bytes::Bytes;
use proto::cri::{LinuxContainerResources, PodSandboxConfig, PodSandboxMetadata};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::record::{self, RecordError};
use crate::host::cgroup::Sample;
use crate::host::fs::Durability;
use crate::host::kept::KeptFiles;
use crate::host::monitor::Monitor;
use crate::model::id::PodId;
use crate::model::name::Name;
use crate::model::sandbox::{Pins, SandboxState};
use crate::model::stage::Stage;
use crate::spec::selinux::Labels;

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
    /// What the pod may use, as it was last updated.
    #[serde(default)]
    pub resources: PodResources,
    /// Labels of its processes and files, where the node has SELinux.
    #[serde(default)]
    pub selinux: Option<Labels>,
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

/// What a pod may use, where an update has said so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodResources {
    /// The sum of its containers.
    #[serde(default, with = "super::message::optional")]
    pub sum: Option<LinuxContainerResources>,
    /// What the sandbox itself takes.
    #[serde(default, with = "super::message::optional")]
    pub overhead: Option<LinuxContainerResources>,
}

/// A pod sandbox in memory.
#[derive(Debug)]
pub struct Sandbox {
    /// Name, unique among live sandboxes.
    pub name: Name,
    /// Everything of the record that never changes; its `state` and `resources` are those at the start of this
    /// object's life.
    pub fixed: SandboxRecord,
    /// Held by the one operation that changes the sandbox.
    pub operation: tokio::sync::Mutex<()>,
    /// Cancelled once to make an operation in flight give up.
    pub abort: CancellationToken,
    /// Processor time when it was last asked for.
    pub sample: Mutex<Option<Sample>>,
    /// What tells of its network; closed before that is taken back, since it would keep the namespace.
    pub files: KeptFiles,
    /// Set when nothing of this boot is left of it but its records.
    pub released: OnceLock<()>,
    /// How far listeners have heard of it; an old one is known as its record says.
    pub announced: Mutex<Stage>,
    /// The monitor, while there is one.
    pub monitor: RwLock<Option<Monitor>>,
    state: watch::Sender<SandboxState>,
    /// A state as it is shown, and what was encoded of the sandbox in it.
    encoded: Mutex<Option<(i32, Bytes)>>,
    directory: PathBuf,
    /// What the pod may use; held by who writes the record.
    write: Mutex<PodResources>,
}

impl Sandbox {
    /// A sandbox whose record lives in `directory`.
    pub fn new(record: SandboxRecord, directory: PathBuf) -> Arc<Self> {
        let state = watch::Sender::new(record.state.clone());
        let write = Mutex::new(record.resources.clone());
        Arc::new(Self {
            name: record.name(),
            announced: Mutex::new(Stage::of_sandbox(&record.state)),
            fixed: record,
            operation: tokio::sync::Mutex::default(),
            abort: CancellationToken::new(),
            sample: Mutex::default(),
            files: KeptFiles::default(),
            released: OnceLock::new(),
            monitor: RwLock::default(),
            state,
            encoded: Mutex::default(),
            directory,
            write,
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

    /// What `encode` makes of the sandbox when it is shown in that state. Kept until another state is asked for: it has
    /// to make the same of the same.
    pub fn encoded(&self, shown: i32, encode: impl FnOnce() -> Bytes) -> Bytes {
        let mut kept = self.encoded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*kept {
            Some((state, bytes)) if *state == shown => bytes.clone(),
            _none_or_old => {
                let bytes = encode();
                *kept = Some((shown, bytes.clone()));
                bytes
            }
        }
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
        let resources = self.write.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.write(state.clone(), resources.clone())?;
        self.state.send_replace(state);
        Ok(())
    }

    /// What the pod may use, where an update has said so.
    pub fn resources(&self) -> PodResources {
        self.write.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Records what the pod may use.
    pub fn set_resources(&self, resources: PodResources) -> Result<(), RecordError> {
        let mut present = self.write.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.write(self.state(), resources.clone())?;
        *present = resources;
        Ok(())
    }

    /// Enters the state after the end of what it was: shown even if it cannot be written, which is an error.
    pub fn end(&self) -> Result<(), RecordError> {
        let stopped = self.state().stopped();
        let written = self.enter(stopped.clone());
        if written.is_err() {
            self.state.send_replace(stopped);
        }
        written
    }

    fn write(&self, state: SandboxState, resources: PodResources) -> Result<(), RecordError> {
        let record = SandboxRecord { state, resources, ..self.fixed.clone() };
        record::write(&path(&self.directory), &record, Durability::Cached)
    }
}

/// Where the record of a sandbox is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join("record.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_shown_even_where_it_cannot_be_written() {
        let record = SandboxRecord {
            id: PodId::generate(),
            boot_id: String::new(),
            created_at: 1,
            runtime_handler: String::new(),
            pins: Pins::default(),
            cgroup_parent: "/".into(),
            resources: PodResources::default(),
            selinux: None,
            state: SandboxState::Ready { ips: vec!["10.0.0.1".into()] },
            config: PodSandboxConfig::default(),
        };
        let top = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::new(record, top.path().join("absent"));
        assert!(sandbox.end().is_err());
        assert!(!sandbox.state().is_ready());
        std::fs::create_dir(top.path().join("absent")).unwrap();
        sandbox.end().unwrap();
        assert!(path(&top.path().join("absent")).exists() && !sandbox.state().is_ready());
    }
}

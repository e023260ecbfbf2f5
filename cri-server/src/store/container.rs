//! Containers: the record, the exit record, and the live object around them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use proto::cri::{ContainerConfig, ContainerMetadata, LinuxContainerResources};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::record::{self, RecordError};
use crate::host::cgroup::Sample;
use crate::host::fs::Durability;
use crate::host::kept::KeptFiles;
use crate::host::usage::KnownUsage;
use crate::image::{LayerKey, Lease};
use crate::model::container::{ContainerState, Exit};
use crate::model::id::{ContainerId, PodId};
use crate::model::name::Name;
use crate::model::stage::Stage;

/// What is on disk about a container: enough to serve it and to undo all of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Id of the container.
    pub id: ContainerId,
    /// Id of its pod sandbox.
    pub pod_id: PodId,
    /// The boot in which its kernel objects were made.
    pub boot_id: String,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Name of the runtime handler that runs it.
    pub handler: String,
    /// Id of its image.
    pub image_id: String,
    /// A reference by digest to its image, or the id where there is none.
    pub image_ref: String,
    /// Keys of its image's layers, bottom first: they stay while the container does.
    pub layers: Vec<LayerKey>,
    /// Images that are mounted into it.
    #[serde(default)]
    pub images: Vec<MountedImage>,
    /// Places of its anonymous volumes in the container; the directory of each is named by its index here.
    #[serde(default)]
    pub volumes: Vec<PathBuf>,
    /// Path of its cgroup, as the OCI runtime takes it.
    pub cgroups_path: String,
    /// Log file, absolute; empty when the output is discarded.
    pub log_path: String,
    /// Signal that asks it to stop.
    pub stop_signal: i32,
    /// User that its process runs as; `None` until the image's files have been read.
    pub user: Option<User>,
    /// State.
    #[serde(flatten)]
    pub state: ContainerState,
    /// Limits that were set after it was made; `None` while those of the configuration are in force.
    #[serde(default, with = "super::message::optional")]
    pub updated: Option<LinuxContainerResources>,
    /// Configuration as it was requested.
    #[serde(with = "super::message")]
    pub config: ContainerConfig,
}

/// An image that is mounted into a container as a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedImage {
    /// Index of the mount in the configuration, which names the mount point too.
    pub mount: usize,
    /// Id of the image.
    pub image_id: String,
    /// Keys of its layers, bottom first: they stay while the container does.
    pub layers: Vec<LayerKey>,
}

/// User that a container's process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A container in memory.
#[derive(Debug)]
pub struct Container {
    /// Id of the container.
    pub id: ContainerId,
    /// Id of its pod sandbox.
    pub pod_id: PodId,
    /// Name, unique among live containers.
    pub name: Name,
    /// Held by the one operation that changes the container.
    pub operation: tokio::sync::Mutex<()>,
    /// When a stop in flight kills; `None` while nobody wants the container stopped. Only ever gets earlier.
    pub kill_at: watch::Sender<Option<Instant>>,
    /// Processor time when it was last asked for.
    pub sample: Mutex<Option<Sample>>,
    /// Files of its cgroup; closed with its end.
    pub files: KeptFiles,
    /// What its writable layer takes.
    pub layer: KnownUsage,
    /// Set when nothing of this boot is left of it but its records.
    pub released: OnceLock<()>,
    /// How far listeners have heard of it; an old one is known as its record says.
    pub announced: Mutex<Stage>,
    /// Keeps the image's layers while the container lives.
    layers: Mutex<Option<Lease>>,
    record: RwLock<Arc<ContainerRecord>>,
    /// A snapshot of the record, and what was encoded of it.
    encoded: Mutex<Option<(Arc<ContainerRecord>, Bytes)>>,
    /// Held by who writes the record; readers do not wait for the disk.
    write: Mutex<()>,
    state: watch::Sender<ContainerState>,
    directory: PathBuf,
}

impl Container {
    /// A container whose record lives in `directory`.
    pub fn new(record: ContainerRecord, directory: PathBuf) -> Arc<Self> {
        let state = watch::Sender::new(record.state.clone());
        Arc::new(Self {
            id: record.id.clone(),
            pod_id: record.pod_id.clone(),
            name: record.name(),
            operation: tokio::sync::Mutex::default(),
            kill_at: watch::Sender::new(None),
            sample: Mutex::default(),
            files: KeptFiles::default(),
            layer: KnownUsage::default(),
            released: OnceLock::new(),
            announced: Mutex::new(Stage::of_container(&record.state)),
            layers: Mutex::default(),
            record: RwLock::new(Arc::new(record)),
            encoded: Mutex::default(),
            write: Mutex::default(),
            state,
            directory,
        })
    }

    /// Keeps layers while the container lives.
    pub fn keep_layers(&self, lease: Lease) {
        *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease);
    }

    /// A snapshot of the record.
    pub fn record(&self) -> Arc<ContainerRecord> {
        self.record.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `encode` makes of a snapshot of the record. Kept until another one is asked for: it has to make the same of
    /// the same.
    pub fn encoded(
        &self,
        record: &Arc<ContainerRecord>,
        encode: impl FnOnce(&ContainerRecord) -> Bytes,
    ) -> Bytes {
        let mut kept = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((of, bytes)) if Arc::ptr_eq(of, record) => bytes.clone(),
            _none_or_old => {
                let bytes = encode(record);
                *kept = Some((record.clone(), bytes.clone()));
                bytes
            }
        }
    }

    /// The state now.
    pub fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    /// Its first process, while it has one.
    pub fn pid(&self) -> Option<i32> {
        self.state.borrow().pid()
    }

    /// To wait for a state.
    pub fn watch(&self) -> watch::Receiver<ContainerState> {
        self.state.subscribe()
    }

    /// Changes the record on disk, then lets readers see it. An exited container stays exited.
    pub fn change(&self, change: impl FnOnce(&mut ContainerRecord)) -> Result<(), RecordError> {
        let _one_writer = self.one_writer();
        let record = self.record();
        let mut next = ContainerRecord::clone(&record);
        change(&mut next);
        if record.state.is_exited() && !next.state.is_exited() {
            next.state = record.state.clone();
        }
        record::write(&path(&self.directory), &next, Durability::Cached)?;
        self.show(next);
        Ok(())
    }

    /// Enters `state`. An exited container stays exited.
    pub fn enter(&self, state: ContainerState) -> Result<(), RecordError> {
        self.change(|record| record.state = state)
    }

    /// Writes the record as it is.
    pub fn save(&self) -> Result<(), RecordError> {
        let _one_writer = self.one_writer();
        record::write(&path(&self.directory), &*self.record(), Durability::Cached)
    }

    /// Shows an end that is not written yet, or could not be: better known in memory than not at all.
    pub fn show_exit(&self, exit: Exit) {
        let _one_writer = self.one_writer();
        let record = self.record();
        if !record.state.is_exited() {
            let state = ContainerState::Exited(exit);
            self.show(ContainerRecord { state, ..ContainerRecord::clone(&record) });
        }
    }

    /// Lets readers see a record; whoever waits for its state finds the record too.
    fn show(&self, record: ContainerRecord) {
        let state = record.state.clone();
        if state.is_exited() {
            self.files.close();
        }
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(record);
        self.state.send_replace(state);
    }

    fn one_writer(&self) -> std::sync::MutexGuard<'_, ()> {
        self.write.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ContainerRecord {
    /// Keys of all layers that the container stands on.
    pub fn all_layers(&self) -> Vec<LayerKey> {
        let mounted = self.images.iter().flat_map(|image| &image.layers);
        self.layers.iter().chain(mounted).copied().collect()
    }

    /// Metadata of the configuration.
    pub fn metadata(&self) -> ContainerMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// Limits in force.
    pub fn resources(&self) -> LinuxContainerResources {
        let asked = || self.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        self.updated.clone().or_else(asked).unwrap_or_default()
    }

    /// Name, unique among live containers.
    fn name(&self) -> Name {
        let metadata = self.metadata();
        Name::container(&metadata.name, self.pod_id.as_str(), metadata.attempt)
    }
}

/// Where the record of a container is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join("record.json")
}

/// Where the monitor writes how a container ended.
pub fn exit_path(directory: &Path) -> PathBuf {
    directory.join("exit.json")
}

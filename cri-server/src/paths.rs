//! Where everything is: one function per kind of file, so that no path is put together twice.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::model::id::{ContainerId, PodId};

/// Directories of the daemon.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
    state: PathBuf,
    netns: PathBuf,
}

impl Paths {
    /// The directories that `config` names.
    pub fn new(config: &Config) -> Self {
        Self { root: config.root.clone(), state: config.state.clone(), netns: config.netns_dir.clone() }
    }

    /// Directory of all pod records.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Directory of a pod's record.
    pub fn pod(&self, id: &PodId) -> PathBuf {
        self.pods().join(id.as_str())
    }

    /// Directory of all container records.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// Directory of a container's record and writable layer.
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// Directory of what all pods have for this boot only.
    pub fn pod_states(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// Directory of what a pod has for this boot only: the monitor's socket, pins, files.
    pub fn pod_state(&self, id: &PodId) -> PathBuf {
        self.pod_states().join(id.as_str())
    }

    /// Socket of a pod's monitor.
    pub fn monitor_socket(&self, id: &PodId) -> PathBuf {
        self.pod_state(id).join("monitor.sock")
    }

    /// The pod's `/dev/shm`.
    pub fn shm(&self, id: &PodId) -> PathBuf {
        self.pod_state(id).join("shm")
    }

    /// A file that the pod's containers see under `/etc`.
    pub fn etc(&self, id: &PodId, name: &str) -> PathBuf {
        self.pod_state(id).join(name)
    }

    /// Directory of the pins of a pod's namespaces but the network's.
    pub fn pins(&self, id: &PodId) -> PathBuf {
        self.pod_state(id).join("ns")
    }

    /// Pin of a namespace that is not the network's.
    pub fn pin(&self, id: &PodId, kind: &str) -> PathBuf {
        self.pins(id).join(kind)
    }

    /// Pin of the pod's network namespace. Made from the id, so that it is known before it exists.
    pub fn netns(&self, id: &PodId) -> PathBuf {
        let hex = id.as_str();
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]];
        self.netns.join(format!("cni-{}", parts.join("-")))
    }

    /// Directory of what all containers have for this boot only.
    pub fn bundles(&self) -> PathBuf {
        self.state.join("containers")
    }

    /// The container's OCI bundle.
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.bundles().join(id.as_str())
    }

    /// Where the container's root is mounted.
    pub fn rootfs(&self, id: &ContainerId) -> PathBuf {
        self.bundle(id).join("rootfs")
    }

    /// Where the images are mounted that are volumes of the container.
    pub fn image_mounts(&self, id: &ContainerId) -> PathBuf {
        self.bundle(id).join("images")
    }

    /// Where the image of the mount at `index` of the request is mounted.
    pub fn image_mount(&self, id: &ContainerId, index: usize) -> PathBuf {
        self.image_mounts(id).join(index.to_string())
    }

    /// Directory of the container's anonymous volumes.
    pub fn volumes(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("volumes")
    }

    /// The anonymous volume at `index` of the record.
    pub fn volume(&self, id: &ContainerId, index: usize) -> PathBuf {
        self.volumes(id).join(index.to_string())
    }

    /// Where volumes are mounted with the owners that the pod's user namespace gives, each by its place in the request.
    pub fn mapped_volumes(&self, id: &ContainerId) -> PathBuf {
        self.bundle(id).join("mapped")
    }

    /// State directory of an OCI runtime that is not configured to have another.
    pub fn oci_root(&self, handler: &str) -> PathBuf {
        self.state.join("oci").join(handler)
    }

    /// The daemon's root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The daemon's state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }
}

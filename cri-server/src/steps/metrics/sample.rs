//! What the metrics of one container are read from.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::cgroup::{Account, CgroupError, Cpu, Memory};
use crate::host::processes::{self, Holdings};
use crate::steps::stats;
use crate::store;
use crate::store::container::Container;

const NS: i64 = 1_000_000_000;

/// A container at a moment.
#[derive(Debug, Default)]
pub struct Sample {
    /// Its cgroup.
    pub account: Account,
    /// What its processes hold.
    pub held: Holdings,
    /// Open files that its first process may have; 0 without a limit.
    pub open_files_limit: u64,
    /// Bytes of its writable layer, 0 while they are not known.
    pub layer_bytes: u64,
    /// The file system that the layer is on.
    pub file_system: Node,
    /// Now, seconds since the epoch.
    pub now_s: u64,
    /// When it was started, seconds since the epoch.
    pub started_s: u64,
}

/// What all containers of the node share: the file system of their layers.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Its device.
    pub device: String,
    /// Its bytes.
    pub capacity: u64,
    /// Its inodes: free, and all.
    pub inodes: [u64; 2],
}

impl Node {
    /// Looks; what cannot be read is 0.
    pub fn look(daemon: &Daemon) -> Self {
        let mut node = Self::default();
        if let Ok(file_system) = rustix::fs::statvfs(daemon.paths.root()) {
            node.capacity = file_system.f_blocks * file_system.f_frsize;
            node.inodes = [file_system.f_ffree, file_system.f_files];
        }
        if let Ok(root) = std::fs::metadata(daemon.paths.root()) {
            node.device = device_name((rustix::fs::major(root.dev()), rustix::fs::minor(root.dev())));
        }
        node
    }
}

impl Sample {
    /// Looks at a container; `None` when it has no process. Blocks.
    pub fn take((daemon, node): (&Daemon, &Node), container: &Container) -> Result<Option<Self>, Error> {
        let record = container.record();
        let Some(pid) = record.state.pid() else { return Ok(None) };
        let cgroup = daemon.cgroup(&record.cgroups_path)?;
        let account = match cgroup.account(&container.files) {
            Ok(account) => account,
            Err(CgroupError::Gone(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let seconds = |ns: i64| u64::try_from(ns / NS).unwrap_or(0);
        let started_at = match record.state.started_at() {
            0 => record.created_at,
            started_at => started_at,
        };
        Ok(Some(Self {
            account,
            held: processes::holdings(&cgroup.processes()),
            open_files_limit: processes::open_files_limit(pid).unwrap_or(0),
            layer_bytes: stats::layer_of(daemon, container).map_or(0, |look| look.usage.bytes),
            file_system: node.clone(),
            now_s: seconds(store::now()),
            started_s: seconds(started_at),
        }))
    }

    /// Processor time.
    pub fn cpu(&self) -> Cpu {
        self.account.stats.cpu.unwrap_or_default()
    }

    /// Memory.
    pub fn memory(&self) -> Memory {
        self.account.stats.memory.unwrap_or_default()
    }
}

/// `/dev/sda1` of a block device's numbers, or the numbers where it has no name.
pub fn device_name((major, minor): (u32, u32)) -> String {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = link.as_deref().and_then(|link| link.file_name()).map(PathBuf::from);
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{}", name.display()))
}

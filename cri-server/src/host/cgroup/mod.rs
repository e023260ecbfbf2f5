//! cgroups, v1, v2 and hybrid: making, emptying and removing them, and reading what they use.
//!
//! OCI runtimes put containers into cgroups; this module makes the parents that are Berth's own, ends what is left
//! in a cgroup and reads its files. Knows neither pods nor containers. All functions block, for short.

mod account;
mod driver;
mod kill;
mod layout;
mod limits;
mod path;
mod plan;
mod properties;
mod slice;
mod stats;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Pid;

pub use account::{Account, DeviceIo, Hugepages};
pub use driver::{Driver, container_in, is_own_parent};
use kill::{descendants, is_absent};
pub use layout::Layout;
pub use limits::LimitError;
pub use path::{CgroupPath, InvalidPath};
pub use plan::Wanted;
pub use slice::{Slice, Unit};
pub use stats::{Cpu, Memory, Pressure, Psi, Sample, Stall, Stats, Swap, usage_nano_cores};

/// The controllers that work in a cgroup of version 2.
const CONTROLLERS: &str = "cgroup.controllers";

/// Why something could not be done with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup hierarchy with controllers is mounted (failed precondition).
    #[error("no cgroup hierarchy is mounted")]
    NoHierarchy,
    /// There is no such cgroup (not found).
    #[error("cgroup {0} does not exist")]
    Gone(CgroupPath),
    /// Everything of the node is in it (invalid argument).
    #[error("the root cgroup is not ours to change")]
    Root,
    /// It still has processes, or children that do (deadline).
    #[error("cgroup {path} is still in use by processes {:?}", left.iter().map(|p| p.as_raw_nonzero()).collect::<Vec<_>>())]
    Busy {
        /// The cgroup.
        path: CgroupPath,
        /// Processes in it.
        left: Vec<Pid>,
    },
    /// The kernel refused (internal).
    #[error("{action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// File, directory or cgroup.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// One cgroup in all hierarchies; it need not exist.
#[derive(Debug, Clone)]
pub struct Cgroup {
    layout: Arc<Layout>,
    path: CgroupPath,
}

impl Cgroup {
    /// The cgroup at `path`: a container's `cgroupsPath`, or a pod's parent.
    pub fn new(layout: &Arc<Layout>, path: CgroupPath) -> Self {
        Self { layout: Arc::clone(layout), path }
    }

    /// Its path.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// Makes the cgroup, so that an OCI runtime can make containers in it: with the controllers that the node has.
    /// One that exists is fine.
    pub fn create(&self) -> Result<(), CgroupError> {
        match &*self.layout {
            Layout::V2 { mount } => self.create_below(mount, delegate)?,
            Layout::V1 { controllers, .. } => {
                for (name, mount) in controllers.iter().filter(|(name, _)| !name.starts_with("name=")) {
                    let prepare = if name == "cpuset" { inherit_cpuset } else { |_: &Path, _: &Path| Ok(()) };
                    self.create_below(mount, prepare)?;
                }
            }
        }
        Ok(())
    }

    /// Has all of the node's controllers work in it (v2), where whoever made it has left some out: systemd passes on no
    /// more than those that it knows, and youki no more than three of them.
    pub fn complete_controllers(&self) -> Result<(), CgroupError> {
        let Layout::V2 { mount } = &*self.layout else { return Ok(()) };
        let own = self.path.below(mount);
        let complete = || -> io::Result<()> {
            if stats::read(&own, CONTROLLERS)? == stats::read(mount, CONTROLLERS)? {
                return Ok(());
            }
            let mut above: Vec<_> =
                own.ancestors().skip(1).take_while(|dir| dir.starts_with(mount)).collect();
            above.reverse();
            above.into_iter().try_for_each(pass_on)
        };
        complete().map_err(|source| self.failed("completing", source))
    }

    /// Removes the cgroup with its descendants in all hierarchies. Tries again, up to `patience`, while processes
    /// that were killed are still leaving. One that is gone is fine.
    pub fn remove(&self, patience: Duration) -> Result<(), CgroupError> {
        self.refuse_root()?;
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            match self.try_remove() {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(source) => return Err(self.failed("removing", source)),
                Ok(()) => return self.remove_shadow(),
            }
            if Instant::now() > deadline {
                return Err(CgroupError::Busy { path: self.path.clone(), left: self.procs()? });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Where the kernel counts the tasks that it killed for want of memory: `memory.events` (v2) or
    /// `memory.oom_control` (v1); `None` without a memory controller. [`oom_kills`] reads the content.
    pub fn oom_file(&self) -> Option<PathBuf> {
        let file = match &*self.layout {
            Layout::V2 { .. } => "memory.events",
            Layout::V1 { .. } => "memory.oom_control",
        };
        self.dir("memory").map(|dir| dir.join(file))
    }

    /// The same file where it counts everything below too, which only v2's does.
    pub fn oom_file_of_all(&self) -> Option<PathBuf> {
        matches!(*self.layout, Layout::V2 { .. }).then(|| self.oom_file()).flatten()
    }

    /// Directories whose `cgroup.procs` together list every process in it: the v2 one, or the freezer's.
    pub fn process_dirs(&self) -> Vec<PathBuf> {
        match &*self.layout {
            Layout::V2 { mount } => vec![self.path.below(mount)],
            Layout::V1 { .. } => self.dir("freezer").map_or_else(|| self.dirs(), |dir| vec![dir]),
        }
    }

    /// Process ids in it and below, as far as they can be read.
    pub fn processes(&self) -> Vec<i32> {
        let trees = self.process_dirs().into_iter().filter_map(|root| descendants(&root).ok());
        let lists = trees.flatten().filter_map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).ok());
        lists.flat_map(|list| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.dirs().iter().any(|dir| dir.is_dir())
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn dir(&self, controller: &str) -> Option<PathBuf> {
        self.layout.mount(controller).map(|mount| self.path.below(mount))
    }

    /// Its directory in every hierarchy, whether it exists or not.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.layout.mounts().into_iter().map(|mount| self.path.below(mount)).collect()
    }

    fn refuse_root(&self) -> Result<(), CgroupError> {
        if self.path.is_root() { Err(CgroupError::Root) } else { Ok(()) }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> CgroupError {
        CgroupError::Io { action, path: self.path.as_str().into(), source }
    }

    /// Makes each missing step below `mount`; `prepare` gets parent and child.
    fn create_below(
        &self,
        mount: &Path,
        prepare: impl Fn(&Path, &Path) -> io::Result<()>,
    ) -> Result<(), CgroupError> {
        let mut parent = mount.to_path_buf();
        for step in self.path.as_str().split('/').filter(|step| !step.is_empty()) {
            let child = parent.join(step);
            let made = match std::fs::create_dir(&child) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => prepare(&parent, &child),
            };
            made.map_err(|source| CgroupError::Io { action: "making", path: child.clone(), source })?;
            parent = child;
        }
        Ok(())
    }

    /// Where the unified hierarchy is not mounted, some OCI runtimes make plain directories in its place.
    fn remove_shadow(&self) -> Result<(), CgroupError> {
        let Layout::V1 { controllers, unified: None } = &*self.layout else { return Ok(()) };
        let Some(parent) = controllers.values().next().and_then(|mount| mount.parent()) else {
            return Ok(());
        };
        match std::fs::remove_dir_all(self.path.below(&parent.join("unified"))) {
            Err(error) if !is_absent(&error) => Err(self.failed("removing what stands for", error)),
            _removed => Ok(()),
        }
    }

    fn try_remove(&self) -> io::Result<()> {
        for root in self.dirs() {
            for dir in descendants(&root)?.into_iter().rev() {
                match std::fs::remove_dir(&dir) {
                    Err(error) if !is_absent(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// How many tasks were killed for want of memory, from the content of [`Cgroup::oom_file`]. Kernels before 4.13 do
/// not count on v1: 0.
pub fn oom_kills(content: &str) -> u64 {
    stats::value(content, "oom_kill")
}

/// Passes the controllers that the parent has on to its children, and on to those of the child.
fn delegate(parent: &Path, child: &Path) -> io::Result<()> {
    [parent, child].into_iter().try_for_each(pass_on)
}

fn pass_on(dir: &Path) -> io::Result<()> {
    for controller in stats::read(dir, CONTROLLERS)?.unwrap_or_default().split_whitespace() {
        // Refused where processes live in `dir`: the runtime then reports the limit that it cannot set.
        let _ = write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
    }
    Ok(())
}

/// Writes a file of the kernel: one that is not there must not be tried to be made.
fn write(path: &Path, text: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// A new v1 cpuset is empty, and takes no process before it has processors and memory nodes.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if std::fs::read_to_string(child.join(file))?.trim().is_empty() {
            write(&child.join(file), &std::fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

//! CPU seconds and memory of a node, from the kernel's own books.
//!
//! The daemon is put into the cgroup `berth-<node>/stack` of the cpuacct hierarchy; everything that it starts
//! (monitors or shims, OCI runtimes, CNI plugins) is born there and charged there, also after it has ended. The
//! containers' cgroups are `berth-<node>/pods/<container>` for every contestant, as a kubelet would name them; what
//! an OCI runtime does after it has moved into one (mounts, pivot_root, exec) and the pause process are charged
//! there. Hence two numbers: `stack`, and `all` with the containers' cgroups. Kernel threads, which take down links
//! and namespaces later, are charged to nobody.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::node::Node;
use crate::processes::pss_kib;

const HIERARCHY: &str = "/sys/fs/cgroup/cpuacct";

/// CPU time that was used up to now, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// Daemon, monitors or shims, OCI runtimes, CNI plugins.
    pub stack: f64,
    /// The same and the containers' cgroups.
    pub all: f64,
}

impl Cpu {
    /// What was used since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { stack: self.stack - earlier.stack, all: self.all - earlier.all }
    }
}

/// Memory of a node's supervision, MiB of Pss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// The daemon.
    pub daemon: f64,
    /// Monitors or shims.
    pub supervisors: f64,
    /// Processes that hold a sandbox (pause).
    pub sandboxes: f64,
}

/// Reads the books of one node.
#[derive(Clone, Debug)]
pub struct Meter {
    top: PathBuf,
    daemon: i32,
}

impl Meter {
    /// Moves the node's daemon into its cgroup. What it has started before is not counted.
    pub fn install(node: &Node) -> Result<Self> {
        let top = Path::new(HIERARCHY).join(format!("berth-{}", node.dirs().id()));
        if !Path::new(HIERARCHY).join("cpuacct.usage").exists() {
            bail!("{HIERARCHY} is missing: CPU seconds are measured with the cgroup v1 controller cpuacct");
        }
        let daemon = node.daemon_pid().context("the node has no daemon")?;
        let stack = top.join("stack");
        std::fs::create_dir_all(&stack).with_context(|| format!("make the cgroup {}", stack.display()))?;
        let procs = stack.join("cgroup.procs");
        std::fs::write(&procs, daemon.to_string()).with_context(|| format!("write {}", procs.display()))?;
        Ok(Self { top, daemon })
    }

    /// The cgroup parent of all pods, for their configuration.
    #[must_use]
    pub fn pods_parent(&self) -> String {
        let name = self.top.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        format!("/{name}/pods")
    }

    /// CPU time up to now.
    pub fn cpu(&self) -> Result<Cpu> {
        let usage = |dir: &Path| -> Result<f64> {
            let path = dir.join("cpuacct.usage");
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(text.trim().parse::<u64>().with_context(|| format!("parse {}", path.display()))? as f64 / 1e6)
        };
        Ok(Cpu { stack: usage(&self.top.join("stack"))?, all: usage(&self.top)? })
    }

    /// Processes of the stack, the daemon included.
    pub fn processes(&self) -> Result<Vec<i32>> {
        pids(&self.top.join("stack"))
    }

    /// Whether the container's process follows SIGTERM by now: it runs its own program, which has set its handler.
    /// Until then the first process of a PID namespace does not notice the signal.
    #[must_use]
    pub fn is_obedient(&self, container: &str, program: &str) -> bool {
        let pids = pids(&self.top.join("pods").join(container)).unwrap_or_default();
        pids.into_iter().any(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().next() == Some(&format!("Name:\t{program}")) && catches_term(&status)
        })
    }

    /// Memory now.
    pub fn memory(&self) -> Result<Memory> {
        let others = self.processes()?.into_iter().filter(|pid| *pid != self.daemon);
        let mut sandboxes = 0.0;
        for container in std::fs::read_dir(self.top.join("pods"))?.flatten() {
            let pids = pids(&container.path()).unwrap_or_default();
            sandboxes += pids.into_iter().filter(|pid| is_sandbox(*pid)).map(pss).sum::<f64>();
        }
        Ok(Memory { daemon: pss(self.daemon), supervisors: others.map(pss).sum(), sandboxes })
    }
}

fn pids(cgroup: &Path) -> Result<Vec<i32>> {
    let path = cgroup.join("cgroup.procs");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn catches_term(status: &str) -> bool {
    const SIGTERM: u64 = 1 << 14;
    let mask =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & SIGTERM != 0)
}

/// Containers of the density family run `sleep`; what else is in a pod's cgroup holds the sandbox.
fn is_sandbox(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|comm| !matches!(comm.trim(), "sleep" | "busybox"))
}

/// Proportional set size, MiB; 0 of a process that has ended.
fn pss(pid: i32) -> f64 {
    pss_kib(pid).unwrap_or(0) as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_of_sigterm_is_a_bit_of_the_mask() {
        let check = |status: &str, expect: bool| assert_eq!(catches_term(status), expect, "{status}");
        check("Name:\tpause\nSigIgn:\t0000000000004000\nSigCgt:\t0000000000014002\n", true);
        check("SigCgt:\t0000000000000002\n", false);
        check("", false);
    }
}

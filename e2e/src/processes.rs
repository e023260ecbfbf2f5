//! Which processes of the machine belong to a node: by an environment marker, by cgroup, by namespace.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::ns;

/// Environment variable that every program of a node inherits; its value is the node's id.
pub const MARKER: &str = "BERTH_E2E_NODE";

/// What identifies the processes of one node.
#[derive(Clone, Debug)]
pub struct Ancestry {
    /// The node's id: value of [`MARKER`] and part of its cgroups' names.
    pub id: String,
    /// `mnt` and `net` namespaces of the node, as [`ns::identity`] shows them.
    pub namespaces: Vec<String>,
}

impl Ancestry {
    /// Processes of the node with their command lines. Zombies count: nobody has reaped them.
    pub fn processes(&self) -> Result<BTreeMap<i32, String>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()).and_then(Pid::from_raw) else {
                continue;
            };
            if self.owns(pid) {
                found.insert(pid.as_raw_nonzero().get(), describe(pid));
            }
        }
        Ok(found)
    }

    /// Sends SIGKILL to every process of the node except `spared`; true when there was none.
    pub fn kill_all(&self, spared: &[i32]) -> Result<bool> {
        let doomed: Vec<i32> = self.processes()?.into_keys().filter(|pid| !spared.contains(pid)).collect();
        for pid in doomed.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            // One that ended in between is what was wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(doomed.is_empty())
    }

    /// The monitor of a pod: the process that writes the monitor's own log in the pod's directory.
    pub fn monitor(&self, pod_id: &str) -> Result<i32> {
        let log = format!("{pod_id}/monitor.log");
        let writes = |pid: &i32| {
            let stderr = std::fs::read_link(format!("/proc/{pid}/fd/2"));
            stderr.is_ok_and(|path| path.to_string_lossy().contains(&log))
        };
        self.processes()?.into_keys().find(writes).with_context(|| format!("pod {pod_id} has no monitor"))
    }

    /// The monitors of all pods, by the name of their program.
    pub fn monitors(&self) -> Result<Vec<i32>> {
        let is_monitor = |pid: &i32| {
            let program = std::fs::read_link(format!("/proc/{pid}/exe"));
            program.is_ok_and(|path| path.file_name().is_some_and(|name| name == "cri-monitor"))
        };
        Ok(self.processes()?.into_keys().filter(is_monitor).collect())
    }

    /// Processes in the cgroups of a pod.
    pub fn of_pod(&self, pod_id: &str) -> Result<Vec<i32>> {
        let inside = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(pod_id))
        };
        Ok(self.processes()?.into_keys().filter(inside).collect())
    }

    fn owns(&self, pid: Pid) -> bool {
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let marker = format!("{MARKER}={}", self.id);
        let environ = std::fs::read(format!("{proc}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == marker.as_bytes())
            || std::fs::read_to_string(format!("{proc}/cgroup")).is_ok_and(|text| text.contains(&self.id))
            || ["mnt", "net"]
                .iter()
                .filter_map(|kind| ns::identity(pid, kind))
                .any(|identity| self.namespaces.contains(&identity))
    }
}

fn describe(pid: Pid) -> String {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let cmdline = std::fs::read(format!("{proc}/cmdline")).unwrap_or_default();
    let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
    if cmdline.trim().is_empty() {
        let comm = std::fs::read_to_string(format!("{proc}/comm")).unwrap_or_default();
        return format!("[{}]", comm.trim());
    }
    cmdline.trim().to_owned()
}

/// Proportional set size of a process in KiB: its share of the memory that it maps.
pub fn pss_kib(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

//! What the node can do, probed once at start.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use super::cgroup::Layout;
use crate::spec::capabilities::CapSet;
use crate::spec::{AppArmor, Availability, CgroupVersion, Machine, NodeFacts, OomScore};

/// Looks at the node.
pub fn facts(layout: &Layout) -> NodeFacts {
    let cgroups = match layout {
        Layout::V2 { .. } => CgroupVersion::V2,
        Layout::V1 { unified: Some(_), .. } => CgroupVersion::Hybrid,
        Layout::V1 { unified: None, .. } => CgroupVersion::V1,
    };
    NodeFacts {
        cgroups,
        cgroup_namespaces: present("/proc/self/ns/cgroup"),
        swap_accounting: any_present(&["/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"], cgroups),
        hugetlb: hugetlb(),
        huge_page_sizes: huge_page_sizes(Path::new("/sys/kernel/mm/hugepages")),
        seccomp: present("/proc/sys/kernel/seccomp/actions_avail"),
        apparmor: apparmor(),
        oom_score: oom_score(),
        capabilities: bounding_set(),
        devices: super::source::all_devices(),
        cpus: cpus(),
        kernel: kernel(),
        machine: Machine::HERE,
    }
}

/// The facts as they are now. AppArmor profiles come and go while the daemon runs; nothing else of them does.
pub fn current(facts: &NodeFacts) -> Cow<'_, NodeFacts> {
    match facts.apparmor {
        AppArmor::Disabled => Cow::Borrowed(facts),
        AppArmor::Enabled { .. } => Cow::Owned(NodeFacts { apparmor: apparmor(), ..facts.clone() }),
    }
}

fn present(path: &str) -> Availability {
    if Path::new(path).exists() { Availability::Present } else { Availability::Missing }
}

fn any_present(v1: &[&str], cgroups: CgroupVersion) -> Availability {
    let found = cgroups == CgroupVersion::V2 || v1.iter().any(|path| Path::new(path).exists());
    if found { Availability::Present } else { Availability::Missing }
}

fn hugetlb() -> Availability {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if controllers.split_whitespace().any(|name| name == "hugetlb") {
        return Availability::Present;
    }
    present("/sys/fs/cgroup/hugetlb")
}

/// Sizes of huge pages in bytes, by the directories `hugepages-<number>kB`.
fn huge_page_sizes(directory: &Path) -> BTreeSet<u64> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok();
    entries.filter_map(|entry| size(entry.file_name().to_str()?)?.checked_mul(1 << 10)).collect()
}

fn apparmor() -> AppArmor {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.trim() != "Y" {
        return AppArmor::Disabled;
    }
    let profiles = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    let loaded: BTreeSet<String> = profiles
        .lines()
        .filter_map(|line| line.rsplit_once(" ("))
        .map(|(name, _)| name.to_string())
        .collect();
    let default_profile =
        ["berth-default", "cri-containerd.apparmor.d"].iter().find(|name| loaded.contains(**name));
    AppArmor::Enabled { default_profile: default_profile.map(ToString::to_string), loaded }
}

/// A process without CAP_SYS_RESOURCE can only raise its score, so the daemon's own is the least one.
fn oom_score() -> OomScore {
    const SYS_RESOURCE: u32 = 24;
    if status_mask("CapEff:") >> SYS_RESOURCE & 1 == 1 {
        return OomScore::Any;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    OomScore::AtLeast(own.trim().parse().unwrap_or(0))
}

fn bounding_set() -> CapSet {
    CapSet::from_bits(status_mask("CapBnd:"))
}

fn status_mask(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    u64::from_str_radix(line.trim(), 16).unwrap_or(0)
}

fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

/// Version of the running kernel, the first two numbers.
pub fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_huge_pages_are_directories() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["hugepages-2048kB", "hugepages-1048576kB", "hugepages-xkB", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(huge_page_sizes(dir.path()), [2 << 20, 1 << 30].into());
        assert_eq!(huge_page_sizes(&dir.path().join("none")), BTreeSet::new());
    }
}

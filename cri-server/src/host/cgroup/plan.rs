//! Which files say a limit, what is written to them, and in which order. Pure.
//!
//! The kernel looks at each write on its own: memory may never exceed memory and swap together, and the share that
//! quota and period make may never exceed the parent's, so what is written first depends on what is there.

use std::collections::BTreeMap;

use crate::spec::oci::{Cpu, HugepageLimit, Memory};

/// Microseconds that v2 has for a period where nobody says otherwise.
const PERIOD: u64 = 100_000;

/// Limits to be set; what is not named stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Weight, quota, period, cpuset.
    pub cpu: Option<&'a Cpu>,
    /// Memory, and memory and swap together.
    pub memory: Option<&'a Memory>,
    /// Huge pages.
    pub hugepages: &'a [HugepageLimit],
    /// Raw files of cgroup v2.
    pub unified: Option<&'a BTreeMap<String, String>>,
}

/// One file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Field of the CRI's LinuxContainerResources that asks for it.
    pub field: &'static str,
    /// Its controller.
    pub controller: &'static str,
    /// Name of the file.
    pub file: String,
    /// What it shall say.
    pub value: String,
    /// Whether the kernel must have it.
    pub present: Present,
}

/// Whether a file must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Present {
    /// The limit is not kept without it.
    Always,
    /// Newer kernels have it beside the one that counts.
    Maybe,
}

/// What a file says now; empty where it is not there.
type Read<'r> = &'r dyn Fn(&str, &str) -> String;

fn step(field: &'static str, controller: &'static str, file: &str, value: impl ToString) -> Step {
    Step { field, controller, file: file.into(), value: value.to_string(), present: Present::Always }
}

pub(super) fn v1(wanted: &Wanted<'_>, read: Read<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(cpu) = wanted.cpu {
        cpuset(cpu, &mut steps);
        steps.extend(cpu.shares.map(|shares| step("cpu_shares", "cpu", "cpu.shares", shares)));
        let quota = cpu.quota.map(|quota| step("cpu_quota", "cpu", "cpu.cfs_quota_us", quota));
        let period = cpu.period.map(|period| step("cpu_period", "cpu", "cpu.cfs_period_us", period));
        // The share must not grow in between beyond both its old and its new size.
        let longer = cpu.period > read("cpu", "cpu.cfs_period_us").parse().ok();
        let both = if longer { [period, quota] } else { [quota, period] };
        steps.extend(both.into_iter().flatten());
    }
    if let Some(memory) = wanted.memory {
        let limit =
            memory.limit.map(|limit| step("memory_limit_in_bytes", "memory", "memory.limit_in_bytes", limit));
        let file = "memory.memsw.limit_in_bytes";
        let swap = memory.swap.map(|swap| step("memory_swap_limit_in_bytes", "memory", file, swap));
        let together: u64 = read("memory", file).parse().unwrap_or(u64::MAX);
        let grows = memory.limit.is_some_and(|limit| u64::try_from(limit).unwrap_or(u64::MAX) > together);
        let both = if grows { [swap, limit] } else { [limit, swap] };
        steps.extend(both.into_iter().flatten());
    }
    hugepages(wanted.hugepages, "limit_in_bytes", &mut steps);
    steps
}

pub(super) fn v2(wanted: &Wanted<'_>, read: Read<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(cpu) = wanted.cpu {
        cpuset(cpu, &mut steps);
        steps.extend(cpu.shares.map(|shares| step("cpu_shares", "cpu", "cpu.weight", weight(shares))));
        if cpu.quota.is_some() || cpu.period.is_some() {
            let field = if cpu.quota.is_some() { "cpu_quota" } else { "cpu_period" };
            steps.push(step(field, "cpu", "cpu.max", cpu_max(cpu, &read("cpu", "cpu.max"))));
        }
    }
    if let Some(memory) = wanted.memory {
        let max = |bytes: i64| if bytes < 0 { "max".to_string() } else { bytes.to_string() };
        steps.extend(
            memory.limit.map(|limit| step("memory_limit_in_bytes", "memory", "memory.max", max(limit))),
        );
        let swap = memory.swap.map(|both| match memory.limit {
            Some(limit) if both >= 0 && limit >= 0 => both.saturating_sub(limit),
            _no_limit => -1,
        });
        let swap =
            swap.map(|swap| step("memory_swap_limit_in_bytes", "memory", "memory.swap.max", max(swap)));
        steps.extend(swap);
    }
    hugepages(wanted.hugepages, "max", &mut steps);
    for (file, value) in wanted.unified.into_iter().flatten() {
        steps.push(step("unified", "", file, value));
    }
    steps
}

fn cpuset(cpu: &Cpu, steps: &mut Vec<Step>) {
    steps.extend(cpu.cpus.as_ref().map(|cpus| step("cpuset_cpus", "cpuset", "cpuset.cpus", cpus)));
    steps.extend(cpu.mems.as_ref().map(|mems| step("cpuset_mems", "cpuset", "cpuset.mems", mems)));
}

fn hugepages(limits: &[HugepageLimit], ending: &str, steps: &mut Vec<Step>) {
    for HugepageLimit { page_size, limit } in limits {
        let reserved = format!("hugetlb.{page_size}.rsvd.{ending}");
        let reserved = step("hugepage_limits", "hugetlb", &reserved, limit);
        steps.push(step("hugepage_limits", "hugetlb", &format!("hugetlb.{page_size}.{ending}"), limit));
        steps.push(Step { present: Present::Maybe, ..reserved });
    }
}

/// A weight of v1, 2 to 262144, as one of v2, 1 to 10000, in the way of the kubelet.
fn weight(shares: u64) -> u64 {
    1 + shares.clamp(2, 262_144).saturating_sub(2) * 9_999 / 262_142
}

fn cpu_max(cpu: &Cpu, present: &str) -> String {
    let (old_quota, old_period) = present.split_once(' ').unwrap_or(("max", ""));
    let quota = match cpu.quota {
        Some(quota) if quota >= 0 => quota.to_string(),
        Some(_) => "max".into(),
        None => old_quota.into(),
    };
    let period = cpu.period.or_else(|| old_period.parse().ok()).unwrap_or(PERIOD);
    format!("{quota} {period}")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Files<'a> = &'a [(&'a str, &'a str)];

    fn check(v: u8, wanted: &Wanted<'_>, files: Files<'_>, expect: &[&str]) {
        let read = |_: &str, name: &str| {
            let file = files.iter().find(|(file, _)| *file == name);
            file.map(|(_, text)| text.to_string()).unwrap_or_default()
        };
        let steps = if v == 1 { v1(wanted, &read) } else { v2(wanted, &read) };
        let shown: Vec<_> = steps.iter().map(|step| format!("{}={}", step.file, step.value)).collect();
        assert_eq!(shown, expect, "v{v} {wanted:?} {files:?}");
    }

    #[test]
    fn memory_never_exceeds_memory_and_swap() {
        let check = |limit: i64, swap: i64, together: &str, expect: &[&str]| {
            let memory = Memory { limit: Some(limit), swap: Some(swap) };
            let wanted = Wanted { memory: Some(&memory), ..Default::default() };
            check(1, &wanted, &[("memory.memsw.limit_in_bytes", together)], expect);
        };
        let (limit, swap) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        check(50, 60, "100", &[&format!("{limit}=50"), &format!("{swap}=60")]);
        check(200, 300, "100", &[&format!("{swap}=300"), &format!("{limit}=200")]);
        check(-1, -1, "100", &[&format!("{swap}=-1"), &format!("{limit}=-1")]);
        check(200, 300, "9223372036854771712", &[&format!("{limit}=200"), &format!("{swap}=300")]);
    }

    #[test]
    fn the_share_of_a_processor_does_not_overshoot() {
        let check = |quota: i64, period: u64, old: &str, expect: &[&str]| {
            let cpu = Cpu { quota: Some(quota), period: Some(period), ..Default::default() };
            let wanted = Wanted { cpu: Some(&cpu), ..Default::default() };
            check(1, &wanted, &[("cpu.cfs_period_us", old)], expect);
        };
        check(200, 400, "100", &["cpu.cfs_period_us=400", "cpu.cfs_quota_us=200"]);
        check(50, 100, "400", &["cpu.cfs_quota_us=50", "cpu.cfs_period_us=100"]);
    }

    #[test]
    fn version_2_has_words_of_its_own() {
        let cpu = |shares, quota, period| Cpu { shares, quota, period, ..Default::default() };
        let cpus = |cpu: &Cpu, files: Files<'_>, expect: &[&str]| {
            check(2, &Wanted { cpu: Some(cpu), ..Default::default() }, files, expect);
        };
        cpus(
            &cpu(Some(1024), Some(50_000), None),
            &[("cpu.max", "max 20000")],
            &["cpu.weight=39", "cpu.max=50000 20000"],
        );
        cpus(&cpu(None, Some(-1), Some(1000)), &[], &["cpu.max=max 1000"]);
        cpus(&cpu(None, None, Some(1000)), &[("cpu.max", "500 20000")], &["cpu.max=500 1000"]);
        cpus(&cpu(Some(2), None, None), &[], &["cpu.weight=1"]);
        cpus(&cpu(Some(262_144), None, None), &[], &["cpu.weight=10000"]);
        let memory = |limit, swap, expect: &[&str]| {
            let memory = Memory { limit, swap };
            check(2, &Wanted { memory: Some(&memory), ..Default::default() }, &[], expect);
        };
        memory(Some(100), Some(150), &["memory.max=100", "memory.swap.max=50"]);
        memory(Some(100), Some(-1), &["memory.max=100", "memory.swap.max=max"]);
        memory(Some(-1), Some(-1), &["memory.max=max", "memory.swap.max=max"]);
        memory(Some(100), None, &["memory.max=100"]);
        let unified = BTreeMap::from([("memory.high".to_string(), "7".to_string())]);
        let hugepages = [HugepageLimit { page_size: "2MB".into(), limit: 4 }];
        let wanted = Wanted { unified: Some(&unified), hugepages: &hugepages, ..Default::default() };
        check(2, &wanted, &[], &["hugetlb.2MB.max=4", "hugetlb.2MB.rsvd.max=4", "memory.high=7"]);
    }
}

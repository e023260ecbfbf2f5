//! New limits for what exists: the request over what is known, checked, written to the cgroup.

use std::collections::BTreeMap;
use std::sync::{Arc, Once};

use proto::cri::LinuxContainerResources;
use rustix::process::Pid;

use super::cri_config::invalid;
use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::host::cgroup::{Cgroup, Unit, Wanted};
use crate::host::{oom_score, systemd};
use crate::spec::{self, OomScore};
use crate::store::container::ContainerRecord;

/// Microseconds of a period where nobody says otherwise.
const PERIOD: i64 = 100_000;
/// The greatest weight.
const SHARES: i64 = 262_144;

/// What is asked for over what is in force: fields that are not set keep their value, and memory without a word on
/// swap keeps the amount of swap.
pub fn merge(present: &LinuxContainerResources, asked: &LinuxContainerResources) -> LinuxContainerResources {
    let number = |asked: i64, present: i64| if asked == 0 { present } else { asked };
    let text = |asked: &String, present: &String| if asked.is_empty() { present } else { asked }.clone();
    let mut hugepages: BTreeMap<_, _> =
        present.hugepage_limits.iter().map(|limit| (limit.page_size.clone(), limit.limit)).collect();
    hugepages.extend(asked.hugepage_limits.iter().map(|limit| (limit.page_size.clone(), limit.limit)));
    let mut unified = present.unified.clone();
    unified.extend(asked.unified.clone());
    LinuxContainerResources {
        cpu_period: number(asked.cpu_period, present.cpu_period),
        cpu_quota: number(asked.cpu_quota, present.cpu_quota),
        cpu_shares: number(asked.cpu_shares, present.cpu_shares),
        memory_limit_in_bytes: number(asked.memory_limit_in_bytes, present.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: number(asked.memory_swap_limit_in_bytes, swap(present, asked)),
        oom_score_adj: number(asked.oom_score_adj, present.oom_score_adj),
        cpuset_cpus: text(&asked.cpuset_cpus, &present.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems, &present.cpuset_mems),
        hugepage_limits: hugepages
            .into_iter()
            .map(|(page_size, limit)| proto::cri::HugepageLimit { page_size, limit })
            .collect(),
        unified,
    }
}

fn swap(present: &LinuxContainerResources, asked: &LinuxContainerResources) -> i64 {
    let (memory, both) = (present.memory_limit_in_bytes, present.memory_swap_limit_in_bytes);
    match asked.memory_limit_in_bytes {
        0 => both,
        -1 if both > 0 => -1,
        limit if memory > 0 && both >= memory => both.saturating_sub(memory).saturating_add(limit),
        _unlimited_or_default => both.min(0),
    }
}

/// Sets in the cgroup `path` of a record what `asked` names, with the values of `merged`, and has systemd keep it where
/// it manages that cgroup. All or nothing.
pub async fn change(
    daemon: &Arc<Daemon>,
    path: &str,
    asked: &LinuxContainerResources,
    merged: &LinuxContainerResources,
) -> Result<(), Error> {
    let (node, cgroup, asked, merged) = (daemon.clone(), daemon.cgroup(path)?, asked.clone(), merged.clone());
    let write = move || apply(&node, &cgroup, &asked, &merged).map(|()| cgroup.properties());
    let properties = blocking(write.clone()).await??;
    // Of a version 1 hierarchy systemd is told nothing.
    let Some(unit) = unit(path)?.filter(|_| !properties.is_empty()) else { return Ok(()) };
    if let Err(error) = systemd::set_properties(&unit.name, &properties).await {
        tracing::warn!(unit = unit.name, error, "systemd does not know the new limits: it may undo them");
    }
    // Its shares of processors are coarser.
    blocking(write).await?.map(drop)
}

/// Adds what an OCI runtime may leave out of a scope that it has systemd make: systemd knows no huge pages.
pub async fn complete(daemon: &Arc<Daemon>, record: &ContainerRecord) -> Result<(), Error> {
    if unit(&record.cgroups_path)?.is_none() {
        return Ok(());
    }
    let cgroup = daemon.cgroup(&record.cgroups_path)?;
    let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
    let limits = spec::linux_resources(&resources.unwrap_or_default(), &daemon.node)?;
    blocking(move || {
        cgroup.complete_controllers()?;
        let hugepages = &limits.hugepage_limits;
        if hugepages.is_empty() { Ok(()) } else { cgroup.limit(&Wanted { hugepages, ..Default::default() }) }
    })
    .await?
    .map_err(Error::from)
}

/// Makes a pod's cgroup, where nothing has yet.
pub async fn make_cgroup(daemon: &Daemon, path: &str) -> Result<(), Error> {
    let cgroup = daemon.cgroup(path)?;
    match unit(path)? {
        Some(unit) => systemd::start(&unit.name).await.map_err(Error::Internal),
        None => Ok(blocking(move || cgroup.create()).await??),
    }
}

fn unit(path: &str) -> Result<Option<Unit>, Error> {
    Unit::parse(path).map_err(|error| Error::Internal(error.to_string()))
}

/// Sets in `cgroup` what `asked` names, with the values of `merged`. All or nothing.
fn apply(
    daemon: &Daemon,
    cgroup: &Cgroup,
    asked: &LinuxContainerResources,
    merged: &LinuxContainerResources,
) -> Result<(), Error> {
    // Refuses what is wrong in the request by its name, before what is wrong in the sum.
    spec::linux_resources(&named(asked), &daemon.node)?;
    let mut limits = spec::linux_resources(merged, &daemon.node)?;
    if let Some(cpu) = &mut limits.cpu {
        cpu.shares.take_if(|_| asked.cpu_shares == 0);
        cpu.quota.take_if(|_| asked.cpu_quota == 0);
        cpu.period.take_if(|_| asked.cpu_period == 0);
        cpu.cpus.take_if(|_| asked.cpuset_cpus.is_empty());
        cpu.mems.take_if(|_| asked.cpuset_mems.is_empty());
    }
    limits.memory.take_if(|_| asked.memory_limit_in_bytes == 0 && asked.memory_swap_limit_in_bytes == 0);
    limits
        .hugepage_limits
        .retain(|limit| asked.hugepage_limits.iter().any(|a| a.page_size == limit.page_size));
    limits.unified.retain(|file, _| asked.unified.contains_key(file));
    Ok(cgroup.limit(&Wanted {
        cpu: limits.cpu.as_ref(),
        memory: limits.memory.as_ref(),
        hugepages: &limits.hugepage_limits,
        unified: Some(&limits.unified),
    })?)
}

/// The request without what makes sense only beside what is in force.
fn named(asked: &LinuxContainerResources) -> LinuxContainerResources {
    let alone = asked.memory_limit_in_bytes == 0;
    let swap = if alone { 0 } else { asked.memory_swap_limit_in_bytes };
    LinuxContainerResources { memory_swap_limit_in_bytes: swap, ..asked.clone() }
}

/// What a pod may use: the sum of its containers' resources, and its overhead. What the sum does not limit is not
/// limited, and only the sum says which processors and which files.
pub fn sum(
    containers: Option<&LinuxContainerResources>,
    overhead: Option<&LinuxContainerResources>,
) -> LinuxContainerResources {
    let default = LinuxContainerResources::default();
    let (sum, overhead) = (containers.unwrap_or(&default), overhead.unwrap_or(&default));
    let plus = |sum: i64, more: i64| if sum > 0 { sum.saturating_add(more.max(0)) } else { sum };
    let period = if sum.cpu_period == 0 { PERIOD } else { sum.cpu_period };
    let overhead_period = if overhead.cpu_period <= 0 { PERIOD } else { overhead.cpu_period };
    let quota = i128::from(overhead.cpu_quota.max(0)) * i128::from(period) / i128::from(overhead_period);
    LinuxContainerResources {
        cpu_shares: plus(sum.cpu_shares, overhead.cpu_shares).min(SHARES.max(sum.cpu_shares)),
        cpu_quota: plus(sum.cpu_quota, i64::try_from(quota).unwrap_or(i64::MAX)),
        memory_limit_in_bytes: plus(sum.memory_limit_in_bytes, overhead.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: plus(sum.memory_swap_limit_in_bytes, overhead.memory_limit_in_bytes),
        oom_score_adj: 0,
        ..sum.clone()
    }
}

/// Gives processes a score, or the least one that this daemon may give.
pub fn set_oom_score(daemon: &Daemon, score: i32, processes: &[Pid]) {
    static REFUSED: Once = Once::new();
    let score = match daemon.node.oom_score {
        OomScore::Any => score,
        OomScore::AtLeast(floor) => score.max(floor),
    };
    if let Err(error) = oom_score::set(processes, score) {
        REFUSED
            .call_once(|| tracing::warn!(score, %error, "OOM scores of running processes stay; said once"));
    }
}

/// A score that the kernel takes.
pub fn check_oom_score(score: i64) -> Result<i32, Error> {
    match i32::try_from(score) {
        Ok(score) if (-1000..=1000).contains(&score) => Ok(score),
        _ => Err(invalid("linux.oom_score_adj", format!("expected -1000 to 1000, got {score}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Resources = LinuxContainerResources;

    #[test]
    fn memory_keeps_its_swap() {
        let check = |present: (i64, i64), asked: (i64, i64), expect: (i64, i64)| {
            let of = |(memory_limit_in_bytes, memory_swap_limit_in_bytes)| Resources {
                memory_limit_in_bytes,
                memory_swap_limit_in_bytes,
                ..Default::default()
            };
            assert_eq!(merge(&of(present), &of(asked)), of(expect), "{present:?} {asked:?}");
        };
        check((100, 100), (200, 0), (200, 200));
        check((100, 150), (200, 0), (200, 250));
        check((100, 150), (50, 0), (50, 100));
        check((100, -1), (200, 0), (200, -1));
        check((100, 0), (200, 0), (200, 0));
        check((100, 150), (-1, 0), (-1, -1));
        check((0, 0), (200, 300), (200, 300));
        check((100, 150), (0, 120), (100, 120));
    }

    #[test]
    fn a_pod_may_use_its_containers_sum_and_its_overhead() {
        let of = |(cpu_shares, cpu_quota, cpu_period, memory_limit_in_bytes)| Resources {
            cpu_shares,
            cpu_quota,
            cpu_period,
            memory_limit_in_bytes,
            ..Default::default()
        };
        let check = |containers, overhead, expect| {
            assert_eq!(sum(Some(&of(containers)), Some(&of(overhead))), of(expect), "{containers:?}");
        };
        check((100, 5_000, 10_000, 7), (20, 10_000, 100_000, 3), (120, 6_000, 10_000, 10));
        check((100, 0, 0, 0), (20, 1_000, 0, 3), (120, 0, 0, 0));
        check((262_144, -1, 0, -1), (20, 1_000, 0, 3), (262_144, -1, 0, -1));
        check((0, 5_000, 0, 7), (0, 0, 0, 0), (0, 5_000, 0, 7));
        assert_eq!(sum(None, None), Resources::default());
    }

    #[test]
    fn what_is_not_named_stays() {
        let limit = |page_size: &str, limit| proto::cri::HugepageLimit { page_size: page_size.into(), limit };
        let present = Resources {
            cpu_quota: 1,
            cpuset_cpus: "0".into(),
            hugepage_limits: vec![limit("2MB", 1), limit("1GB", 2)],
            unified: [("a.b".to_string(), "1".to_string())].into(),
            ..Default::default()
        };
        let asked = Resources {
            cpu_shares: 7,
            hugepage_limits: vec![limit("2MB", 3)],
            unified: [("c.d".to_string(), "2".to_string())].into(),
            ..Default::default()
        };
        let merged = merge(&present, &asked);
        assert_eq!((merged.cpu_quota, merged.cpu_shares, merged.cpuset_cpus.as_str()), (1, 7, "0"));
        assert_eq!(merged.hugepage_limits, [limit("1GB", 2), limit("2MB", 3)]);
        assert_eq!(merged.unified.len(), 2);
        assert_eq!(merge(&present, &Resources::default()).cpu_quota, 1);
    }
}

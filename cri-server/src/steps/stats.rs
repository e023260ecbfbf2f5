//! Statistics, read from cgroup files and links when they are asked for: nothing is polled, nothing is cached.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use proto::cri::{self, UInt64Value};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::cgroup::{self, Sample, Stats};
use crate::host::netns::{self, LinkStats};
use crate::host::usage;
use crate::store;
use crate::store::container::Container;
use crate::store::sandbox::Sandbox;

/// Most entries of a writable layer that are counted.
pub const LAYER_ENTRIES: u64 = 200_000;

/// Statistics of a container; one that does not run uses nothing but its writable layer. Blocks.
pub fn container(daemon: &Daemon, container: &Container) -> Result<cri::ContainerStats, Error> {
    Ok(container_message(daemon, container, &read(daemon, &container.record().cgroups_path)?))
}

/// Statistics of a pod and its containers. Blocks.
pub fn sandbox(daemon: &Daemon, sandbox: &Sandbox) -> Result<cri::PodSandboxStats, Error> {
    let pin: Vec<PathBuf> = sandbox.fixed.pins.net.iter().cloned().collect();
    let links = netns::link_stats_of(pin).pop().and_then(Result::ok);
    sandbox_with_links(daemon, sandbox, links)
}

/// Statistics of several pods. Blocks.
pub fn sandboxes(
    daemon: &Daemon,
    sandboxes: &[std::sync::Arc<Sandbox>],
) -> Result<Vec<cri::PodSandboxStats>, Error> {
    let pins = sandboxes.iter().filter_map(|sandbox| sandbox.fixed.pins.net.clone()).collect();
    let mut links = netns::link_stats_of(pins).into_iter();
    sandboxes
        .iter()
        .map(|sandbox| {
            let own = sandbox.fixed.pins.net.is_some();
            let links = if own { links.next().and_then(Result::ok) } else { None };
            sandbox_with_links(daemon, sandbox, links)
        })
        .collect()
}

fn sandbox_with_links(
    daemon: &Daemon,
    sandbox: &Sandbox,
    links: Option<Vec<LinkStats>>,
) -> Result<cri::PodSandboxStats, Error> {
    let mut parts = Vec::new();
    let mut containers = Vec::new();
    for container in daemon.containers_of(sandbox.id()) {
        if container.state().pid().is_none() {
            continue;
        }
        let stats = read(daemon, &container.record().cgroups_path)?;
        containers.push(container_message(daemon, &container, &stats));
        parts.push(stats);
    }
    let total = Stats::total(&parts);
    let now = store::now();
    let fixed = &sandbox.fixed;
    let count = total.pids.unwrap_or(0);
    Ok(cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: fixed.id.to_string(),
            metadata: fixed.config.metadata.clone(),
            labels: fixed.config.labels.clone(),
            annotations: fixed.config.annotations.clone(),
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: cpu(&total, now, &sandbox.sample),
            memory: memory(&total, now),
            network: links.map(|links| network(&links, now)),
            process: Some(cri::ProcessUsage { timestamp: now, process_count: value(count) }),
            containers,
            io: None,
        }),
        windows: None,
    })
}

fn container_message(daemon: &Daemon, container: &Container, stats: &Stats) -> cri::ContainerStats {
    let now = store::now();
    let record = container.record();
    let layer = daemon.paths.container(&record.id).join("upper");
    // A layer that cannot be read has no known usage.
    let usage = usage::dir_usage(&layer, LAYER_ENTRIES).ok();
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: record.id.to_string(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        cpu: cpu(stats, now, &container.sample),
        memory: memory(stats, now),
        writable_layer: Some(cri::FilesystemUsage {
            timestamp: now,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: daemon.paths.root().display().to_string() }),
            used_bytes: usage.as_ref().and_then(|usage| value(usage.bytes)),
            inodes_used: usage.as_ref().and_then(|usage| value(usage.inodes)),
        }),
        swap: stats.swap.map(|swap| cri::SwapUsage {
            timestamp: now,
            swap_available_bytes: swap.available.and_then(value),
            swap_usage_bytes: value(swap.usage),
        }),
        io: stats.io_psi.map(|psi| cri::IoUsage { timestamp: now, psi: Some(pressure(&psi)) }),
    }
}

/// A cgroup that is gone has used nothing.
fn read(daemon: &Daemon, path: &str) -> Result<Stats, Error> {
    match daemon.cgroup(path)?.stats() {
        Ok(stats) => Ok(stats),
        Err(cgroup::CgroupError::Gone(_)) => Ok(Stats::default()),
        Err(error) => Err(error.into()),
    }
}

fn cpu(stats: &Stats, timestamp: i64, last: &Mutex<Option<Sample>>) -> Option<cri::CpuUsage> {
    let cpu = stats.cpu.unwrap_or_default();
    let now = Sample { at: Instant::now(), usage_ns: cpu.usage_ns };
    let before = last.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
    let rate = before.and_then(|before| cgroup::usage_nano_cores(before, now));
    Some(cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(cpu.usage_ns),
        usage_nano_cores: value(rate.unwrap_or(0)),
        psi: cpu.psi.as_ref().map(pressure),
    })
}

fn memory(stats: &Stats, timestamp: i64) -> Option<cri::MemoryUsage> {
    let memory = stats.memory.unwrap_or_default();
    Some(cri::MemoryUsage {
        timestamp,
        working_set_bytes: value(memory.working_set),
        available_bytes: value(memory.available.unwrap_or(0)),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: memory.psi.as_ref().map(pressure),
    })
}

fn network(links: &[LinkStats], timestamp: i64) -> cri::NetworkUsage {
    let usage = |link: &LinkStats| cri::NetworkInterfaceUsage {
        name: link.name.clone(),
        rx_bytes: value(link.rx_bytes),
        rx_errors: value(link.rx_errors),
        tx_bytes: value(link.tx_bytes),
        tx_errors: value(link.tx_errors),
    };
    let (default, others): (Vec<_>, Vec<_>) =
        links.iter().filter(|link| link.name != "lo").partition(|link| link.name == "eth0");
    cri::NetworkUsage {
        timestamp,
        default_interface: default.first().map(|link| usage(link)),
        interfaces: others.into_iter().map(usage).collect(),
    }
}

fn pressure(psi: &cgroup::Psi) -> cri::PsiStats {
    let stall = |stall: &cgroup::Stall| cri::PsiData {
        total: stall.total_ns,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    cri::PsiStats { full: Some(stall(&psi.full)), some: Some(stall(&psi.some)) }
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

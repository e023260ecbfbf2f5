//! Statistics, read from cgroup files and links when they are asked for. What a writable layer takes is known from a
//! walk that was made beside an earlier call: how long a walk takes is for the container to say.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use proto::cri::{self, UInt64Value};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::cgroup::{self, Pressure, Sample, Stats};
use crate::host::kept::Key;
use crate::host::netns::{self, LinkStats};
use crate::host::usage::Look;
use crate::model::id::PodId;
use crate::store;
use crate::store::container::Container;
use crate::store::sandbox::Sandbox;

/// Most entries of a writable layer that are counted.
const LAYER_ENTRIES: u64 = 200_000;
/// Most entries that a call itself counts, where nothing is known yet.
const FIRST_ENTRIES: u64 = 200;
/// The kept file of a sandbox.
const LINKS: Key = ("net", "dev");

/// Statistics of containers; one that does not run uses nothing but its writable layer. Blocks.
pub fn containers(
    daemon: &Arc<Daemon>,
    containers: &[Arc<Container>],
) -> Result<Vec<cri::ContainerStats>, Error> {
    let stats = containers.iter().map(|container| {
        let stats = read(daemon, container)?;
        Ok(container_message(daemon, container, &stats))
    });
    let stats = stats.collect();
    walk_stale_layers(daemon, containers.to_vec());
    stats
}

/// Statistics of pods and their containers. Blocks.
pub fn sandboxes(
    daemon: &Arc<Daemon>,
    sandboxes: &[Arc<Sandbox>],
) -> Result<Vec<cri::PodSandboxStats>, Error> {
    let mut of_pods = running_by_pod(daemon);
    let mut asked = Vec::new();
    let links = links_of(sandboxes);
    let pods = pods_by_cgroup(daemon);
    let stats = sandboxes.iter().zip(links).map(|(sandbox, links)| {
        let containers = of_pods.remove(sandbox.id()).unwrap_or_default();
        let alone = pods.get(sandbox.fixed.cgroup_parent.as_str()) == Some(&1);
        let pressure = if alone { pressure_on(daemon, sandbox) } else { Pressure::default() };
        let stats = sandbox_message(daemon, sandbox, &containers, (links, pressure));
        asked.extend(containers);
        stats
    });
    let stats = stats.collect();
    walk_stale_layers(daemon, asked);
    stats
}

/// Containers that have a process.
pub fn running_by_pod(daemon: &Daemon) -> HashMap<PodId, Vec<Arc<Container>>> {
    let mut of_pods: HashMap<PodId, Vec<Arc<Container>>> = HashMap::new();
    for container in daemon.containers.matching(|container| container.pid().is_some()) {
        of_pods.entry(container.pod_id.clone()).or_default().push(container);
    }
    of_pods
}

/// How many pods there are in each parent cgroup that a pod may have for itself.
fn pods_by_cgroup(daemon: &Daemon) -> HashMap<String, usize> {
    let mut pods = HashMap::new();
    for sandbox in daemon.sandboxes.all() {
        *pods.entry(sandbox.fixed.cgroup_parent.clone()).or_default() += 1;
    }
    pods.retain(|path, _| !["/", "-.slice"].contains(&path.as_str()));
    pods
}

/// The pressure on a pod that has its parent cgroup for itself: of containers there is no sum.
fn pressure_on(daemon: &Daemon, sandbox: &Sandbox) -> Pressure {
    let cgroup = daemon.cgroup(&sandbox.fixed.cgroup_parent);
    cgroup.map_or_else(|_| Pressure::default(), |cgroup| cgroup.pressure(&sandbox.files))
}

/// The links of each sandbox that has a network namespace of its own, as far as they can be read. Blocks.
pub fn links_of(sandboxes: &[Arc<Sandbox>]) -> Vec<Option<Vec<LinkStats>>> {
    let own = |sandbox: &&Arc<Sandbox>| sandbox.fixed.pins.net.clone();
    let strange: Vec<PathBuf> =
        sandboxes.iter().filter(|sandbox| !sandbox.files.has(LINKS)).filter_map(|s| own(&s)).collect();
    let paths = strange.clone();
    let opened = if strange.is_empty() { Vec::new() } else { netns::open_links(strange) };
    let mut opened: HashMap<PathBuf, _> = paths.into_iter().zip(opened).collect();
    let look = |sandbox: &Arc<Sandbox>| {
        let pin = sandbox.fixed.pins.net.as_ref()?;
        let open = || opened.remove(pin).unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into()));
        let text = sandbox.files.read(LINKS, netns::LINKS, open).ok()?;
        Some(netns::links(&text))
    };
    sandboxes.iter().map(look).collect()
}

/// What the writable layer of a container took when it was last looked at; none before anybody has. A first look that
/// is quick is made at once. Blocks for some microseconds.
pub fn layer_of(daemon: &Daemon, container: &Container) -> Option<Look> {
    container.layer.last().or_else(|| {
        let layer = daemon.paths.container(&container.id).join("upper");
        // A layer that cannot be read has no known usage.
        container.layer.glance(&layer, FIRST_ENTRIES).ok().flatten()
    })
}

/// Looks at the layers of which too little is known, in the background, by one task at a time.
pub fn walk_stale_layers(daemon: &Arc<Daemon>, mut containers: Vec<Arc<Container>>) {
    containers.retain(|container| container.layer.is_stale());
    if containers.is_empty() {
        return;
    }
    // A daemon that ends is not held up for longer than one walk.
    let (running, walk) = (Arc::downgrade(daemon), daemon.layer_walk.clone());
    tokio::task::spawn_blocking(move || {
        let Ok(_one_at_a_time) = walk.try_lock() else { return };
        for container in containers {
            let Some(daemon) = running.upgrade() else { return };
            let layer = daemon.paths.container(&container.id).join("upper");
            // The next call tries again.
            let _gone = container.layer.walk(&layer, LAYER_ENTRIES);
        }
    });
}

fn sandbox_message(
    daemon: &Daemon,
    sandbox: &Sandbox,
    running: &[Arc<Container>],
    (links, pressure): (Option<Vec<LinkStats>>, Pressure),
) -> Result<cri::PodSandboxStats, Error> {
    let mut parts = Vec::new();
    let mut containers = Vec::new();
    for container in running {
        let stats = read(daemon, container)?;
        containers.push(container_message(daemon, container, &stats));
        parts.push(stats);
    }
    let mut total = Stats::total(&parts);
    if let Some(cpu) = &mut total.cpu {
        cpu.psi = pressure.cpu;
    }
    if let Some(memory) = &mut total.memory {
        memory.psi = pressure.memory;
    }
    total.io_psi = pressure.io;
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
            io: io(&total, now),
        }),
        windows: None,
    })
}

fn container_message(daemon: &Daemon, container: &Container, stats: &Stats) -> cri::ContainerStats {
    let now = store::now();
    let record = container.record();
    let look = layer_of(daemon, container);
    let known = |count: fn(&Look) -> u64| look.as_ref().and_then(|look| value(count(look)));
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
            timestamp: look.map_or(now, |look| nanoseconds(look.at)),
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: daemon.paths.root().display().to_string() }),
            used_bytes: known(|look| look.usage.bytes),
            inodes_used: known(|look| look.usage.inodes),
        }),
        swap: stats.swap.map(|swap| cri::SwapUsage {
            timestamp: now,
            swap_available_bytes: swap.available.and_then(value),
            swap_usage_bytes: value(swap.usage),
        }),
        io: io(stats, now),
    }
}

/// A cgroup that is gone has used nothing.
fn read(daemon: &Daemon, container: &Container) -> Result<Stats, Error> {
    match daemon.cgroup(&container.record().cgroups_path)?.stats(&container.files) {
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

fn io(stats: &Stats, timestamp: i64) -> Option<cri::IoUsage> {
    stats.io_psi.map(|psi| cri::IoUsage { timestamp, psi: Some(pressure(&psi)) })
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

fn nanoseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

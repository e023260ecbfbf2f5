//! The metrics of a container and of a pod's network: names and meaning as cAdvisor gave them, and how each is read
//! from what the kernel said. Times are whole seconds: the CRI's values are integers.

use proto::cri::MetricType::{self, Counter, Gauge};

use super::sample::{Sample, device_name};
use crate::host::cgroup::{DeviceIo, Psi};
use crate::host::netns::LinkStats;

/// Labels of every metric, before those of its own.
pub const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

const NS: u64 = 1_000_000_000;

/// Values of a metric's own labels, and a number.
pub type Point = (Vec<String>, u64);

/// A metric, read from a `T`.
pub struct Family<T: 'static> {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// Whether it only ever grows.
    pub kind: MetricType,
    /// Labels of its own.
    pub labels: &'static [&'static str],
    /// Where the kernel has it.
    pub needs: Needs,
    read: fn(&T) -> Vec<Point>,
}

/// What a metric needs of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// Pressure stall information of cgroups.
    Pressure,
    /// The hugetlb controller.
    Hugetlb,
    /// The hugetlb controller of cgroup v1.
    HugetlbPeak,
}

impl<T> Family<T> {
    /// Its values now.
    pub fn read(&self, from: &T) -> Vec<Point> {
        (self.read)(from)
    }
}

const fn family<T>(
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    read: fn(&T) -> Vec<Point>,
) -> Family<T> {
    Family { name, help, kind, labels: &[], needs: Needs::Nothing, read }
}

const fn labelled<T>(labels: &'static [&'static str], family: Family<T>) -> Family<T> {
    Family { labels, ..family }
}

const fn needing<T>(needs: Needs, family: Family<T>) -> Family<T> {
    Family { needs, ..family }
}

fn one(value: u64) -> Vec<Point> {
    vec![(Vec::new(), value)]
}

fn some(value: Option<u64>) -> Vec<Point> {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn stalled(psi: Option<Psi>) -> Vec<Point> {
    some(psi.map(|psi| psi.full.total_ns / NS))
}

fn waiting(psi: Option<Psi>) -> Vec<Point> {
    some(psi.map(|psi| psi.some.total_ns / NS))
}

fn per_device(sample: &Sample, count: fn(&DeviceIo) -> u64) -> Vec<Point> {
    sample.account.devices.iter().map(|io| (vec![device_name(io.device)], count(io))).collect()
}

fn file_system(sample: &Sample, count: fn(&Sample) -> u64) -> Vec<Point> {
    vec![(vec![sample.file_system.device.clone()], count(sample))]
}

fn block_devices(sample: &Sample) -> Vec<Point> {
    let both = sample.account.devices.iter().flat_map(|io| {
        [("Read", io.bytes[0]), ("Write", io.bytes[1])].map(|(operation, bytes)| {
            let (major, minor) = io.device;
            let labels = [device_name(io.device), major.to_string(), minor.to_string(), operation.into()];
            (labels.to_vec(), bytes)
        })
    });
    both.collect()
}

fn faults(sample: &Sample) -> Vec<Point> {
    let memory = sample.account.stats.memory.unwrap_or_default();
    let point = |kind: &str, scope: &str, count| (vec![kind.to_string(), scope.to_string()], count);
    let [faults, major] = sample.account.own_faults;
    vec![
        point("pgfault", "container", faults),
        point("pgmajfault", "container", major),
        point("pgfault", "hierarchy", memory.page_faults),
        point("pgmajfault", "hierarchy", memory.major_page_faults),
    ]
}

fn hugepages(sample: &Sample) -> Vec<Point> {
    sample.account.hugepages.iter().map(|pages| (vec![pages.page_size.clone()], pages.usage)).collect()
}

fn hugepage_peaks(sample: &Sample) -> Vec<Point> {
    let peaks = sample.account.hugepages.iter();
    peaks.filter_map(|pages| Some((vec![pages.page_size.clone()], pages.max_usage?))).collect()
}

const DEVICE: &[&str] = &["device"];
const PAGE_SIZE: &[&str] = &["pagesize"];

/// Metrics of a container, by name.
pub static CONTAINER: [Family<Sample>; 48] = [
    labelled(
        &["device", "major", "minor", "operation"],
        family(
            "container_blkio_device_usage_total",
            "Bytes to and from block devices",
            Counter,
            block_devices,
        ),
    ),
    family("container_cpu_cfs_periods_total", "Periods in which tasks could run", Counter, |s| {
        one(s.account.periods[0])
    }),
    family(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which tasks were throttled",
        Counter,
        |s| one(s.account.periods[1]),
    ),
    family(
        "container_cpu_cfs_throttled_seconds_total",
        "Time for which tasks were throttled",
        Counter,
        |s| one(s.account.throttled_ns / NS),
    ),
    family("container_cpu_system_seconds_total", "Processor time in kernel mode", Counter, |s| {
        one(s.account.system_ns / NS)
    }),
    family("container_cpu_usage_seconds_total", "Processor time", Counter, |s| one(s.cpu().usage_ns / NS)),
    family("container_cpu_user_seconds_total", "Processor time in user mode", Counter, |s| {
        one(s.account.user_ns / NS)
    }),
    family("container_file_descriptors", "Open file descriptors", Gauge, |s| one(s.held.descriptors)),
    labelled(
        DEVICE,
        family("container_fs_inodes_free", "Inodes that the file system has left", Gauge, |s| {
            file_system(s, |s| s.file_system.inodes[0])
        }),
    ),
    labelled(
        DEVICE,
        family("container_fs_inodes_total", "Inodes of the file system", Gauge, |s| {
            file_system(s, |s| s.file_system.inodes[1])
        }),
    ),
    labelled(
        DEVICE,
        family("container_fs_limit_bytes", "Bytes of the file system", Gauge, |s| {
            file_system(s, |s| s.file_system.capacity)
        }),
    ),
    labelled(
        DEVICE,
        family("container_fs_reads_bytes_total", "Bytes read", Counter, |s| per_device(s, |io| io.bytes[0])),
    ),
    labelled(
        DEVICE,
        family("container_fs_reads_total", "Reads", Counter, |s| per_device(s, |io| io.operations[0])),
    ),
    labelled(
        DEVICE,
        family("container_fs_usage_bytes", "Bytes of the writable layer", Gauge, |s| {
            file_system(s, |s| s.layer_bytes)
        }),
    ),
    labelled(
        DEVICE,
        family("container_fs_writes_bytes_total", "Bytes written", Counter, |s| {
            per_device(s, |io| io.bytes[1])
        }),
    ),
    labelled(
        DEVICE,
        family("container_fs_writes_total", "Writes", Counter, |s| per_device(s, |io| io.operations[1])),
    ),
    needing(
        Needs::HugetlbPeak,
        labelled(
            PAGE_SIZE,
            family("container_hugetlb_max_usage_bytes", "Greatest use of huge pages", Gauge, hugepage_peaks),
        ),
    ),
    needing(
        Needs::Hugetlb,
        labelled(PAGE_SIZE, family("container_hugetlb_usage_bytes", "Huge pages in use", Gauge, hugepages)),
    ),
    family("container_last_seen", "When the container was last seen, seconds since the epoch", Gauge, |s| {
        one(s.now_s)
    }),
    family("container_memory_cache", "Page cache", Gauge, |s| one(s.account.cache)),
    family("container_memory_failcnt", "How often the limit of memory was hit", Counter, |s| {
        one(s.account.limit_hits)
    }),
    labelled(
        &["failure_type", "scope"],
        family("container_memory_failures_total", "Page faults", Counter, faults),
    ),
    family("container_memory_kernel_usage", "Memory of the kernel", Gauge, |s| one(s.account.kernel)),
    family("container_memory_mapped_file", "Files mapped into memory", Gauge, |s| one(s.account.mapped_file)),
    family("container_memory_max_usage_bytes", "Greatest use of memory", Gauge, |s| one(s.account.max_usage)),
    family("container_memory_rss", "Anonymous memory", Gauge, |s| one(s.memory().rss)),
    family("container_memory_swap", "Swap in use", Gauge, |s| {
        one(s.account.stats.swap.map_or(0, |swap| swap.usage))
    }),
    family("container_memory_usage_bytes", "Memory in use, page cache included", Gauge, |s| {
        one(s.memory().usage)
    }),
    family("container_memory_working_set_bytes", "Memory that cannot be had back cheaply", Gauge, |s| {
        one(s.memory().working_set)
    }),
    family("container_oom_events_total", "Tasks killed for want of memory", Counter, |s| {
        one(s.account.oom_kills)
    }),
    needing(
        Needs::Pressure,
        family(
            "container_pressure_cpu_stalled_seconds_total",
            "No task could run for want of a processor",
            Counter,
            |s| stalled(s.cpu().psi),
        ),
    ),
    needing(
        Needs::Pressure,
        family(
            "container_pressure_cpu_waiting_seconds_total",
            "Some task waited for a processor",
            Counter,
            |s| waiting(s.cpu().psi),
        ),
    ),
    needing(
        Needs::Pressure,
        family(
            "container_pressure_io_stalled_seconds_total",
            "No task could run for want of input or output",
            Counter,
            |s| stalled(s.account.stats.io_psi),
        ),
    ),
    needing(
        Needs::Pressure,
        family(
            "container_pressure_io_waiting_seconds_total",
            "Some task waited for input or output",
            Counter,
            |s| waiting(s.account.stats.io_psi),
        ),
    ),
    needing(
        Needs::Pressure,
        family(
            "container_pressure_memory_stalled_seconds_total",
            "No task could run for want of memory",
            Counter,
            |s| stalled(s.memory().psi),
        ),
    ),
    needing(
        Needs::Pressure,
        family(
            "container_pressure_memory_waiting_seconds_total",
            "Some task waited for memory",
            Counter,
            |s| waiting(s.memory().psi),
        ),
    ),
    family("container_processes", "Processes", Gauge, |s| one(s.held.processes)),
    family("container_sockets", "Open sockets", Gauge, |s| one(s.held.sockets)),
    family("container_spec_cpu_period", "Length of a period, microseconds", Gauge, |s| {
        one(s.account.period_us)
    }),
    family("container_spec_cpu_quota", "Processor time in a period, microseconds", Gauge, |s| {
        some(s.account.quota_us)
    }),
    family("container_spec_cpu_shares", "Weight of processor time", Gauge, |s| one(s.account.shares)),
    family("container_spec_memory_limit_bytes", "Limit of memory, 0 without one", Gauge, |s| {
        one(s.account.memory_limit)
    }),
    family("container_spec_memory_reservation_limit_bytes", "Memory that is spared, 0 if none", Gauge, |s| {
        one(s.account.reservation)
    }),
    family("container_spec_memory_swap_limit_bytes", "Limit of swap, 0 without one", Gauge, |s| {
        one(s.account.swap_limit)
    }),
    family("container_start_time_seconds", "When it was started, seconds since the epoch", Gauge, |s| {
        one(s.started_s)
    }),
    family("container_threads", "Tasks", Gauge, |s| one(s.account.stats.pids.unwrap_or(0))),
    family("container_threads_max", "Limit of tasks, 0 without one", Gauge, |s| one(s.account.pids_max)),
    labelled(
        &["ulimit"],
        family("container_ulimits_soft", "Soft limits of the first process, 0 without one", Gauge, |s| {
            vec![(vec!["max_open_files".into()], s.open_files_limit)]
        }),
    ),
];

fn per_link(links: &[LinkStats], count: fn(&LinkStats) -> u64) -> Vec<Point> {
    let others = links.iter().filter(|link| link.name != "lo");
    others.map(|link| (vec![link.name.clone()], count(link))).collect()
}

const INTERFACE: &[&str] = &["interface"];

/// Metrics of a pod's network, by name.
pub static NETWORK: [Family<Vec<LinkStats>>; 8] = [
    labelled(
        INTERFACE,
        family("container_network_receive_bytes_total", "Bytes received", Counter, |l| {
            per_link(l, |l| l.rx_bytes)
        }),
    ),
    labelled(
        INTERFACE,
        family("container_network_receive_errors_total", "Packets received wrongly", Counter, |l| {
            per_link(l, |l| l.rx_errors)
        }),
    ),
    labelled(
        INTERFACE,
        family(
            "container_network_receive_packets_dropped_total",
            "Packets received and dropped",
            Counter,
            |l| per_link(l, |l| l.rx_dropped),
        ),
    ),
    labelled(
        INTERFACE,
        family("container_network_receive_packets_total", "Packets received", Counter, |l| {
            per_link(l, |l| l.rx_packets)
        }),
    ),
    labelled(
        INTERFACE,
        family("container_network_transmit_bytes_total", "Bytes sent", Counter, |l| {
            per_link(l, |l| l.tx_bytes)
        }),
    ),
    labelled(
        INTERFACE,
        family("container_network_transmit_errors_total", "Packets that could not be sent", Counter, |l| {
            per_link(l, |l| l.tx_errors)
        }),
    ),
    labelled(
        INTERFACE,
        family("container_network_transmit_packets_dropped_total", "Packets dropped unsent", Counter, |l| {
            per_link(l, |l| l.tx_dropped)
        }),
    ),
    labelled(
        INTERFACE,
        family("container_network_transmit_packets_total", "Packets sent", Counter, |l| {
            per_link(l, |l| l.tx_packets)
        }),
    ),
];

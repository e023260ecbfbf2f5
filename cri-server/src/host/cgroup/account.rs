//! What metrics want of a cgroup beyond its statistics: throttling, limits, failures, devices. Parsing is pure.

use std::io;

use super::stats::{self, find, number, value};
use super::{Cgroup, CgroupError, Layout, Stats, oom_kills};
use crate::host::kept::KeptFiles;

/// v1 writes no limit as the greatest multiple of a page.
const NO_LIMIT: u64 = 1 << 62;

/// Ticks of `cpuacct.stat` a second (USER_HZ, the same on all of Linux's common architectures).
const USER_HZ: u64 = 100;

/// Everything that a cgroup says of itself. A number that the kernel does not have is 0, as is a limit that is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Account {
    /// Usage.
    pub stats: Stats,
    /// Processor time in user mode, ns.
    pub user_ns: u64,
    /// Processor time in kernel mode, ns.
    pub system_ns: u64,
    /// Periods in which tasks ran, and in which they were throttled.
    pub periods: [u64; 2],
    /// How long tasks were throttled, ns.
    pub throttled_ns: u64,
    /// Weight of processor time, as v1 has it.
    pub shares: u64,
    /// Length of a period, µs.
    pub period_us: u64,
    /// Time in a period, µs; `None` without a limit.
    pub quota_us: Option<u64>,
    /// Page cache, bytes.
    pub cache: u64,
    /// Files mapped into memory, bytes.
    pub mapped_file: u64,
    /// Memory of the kernel, bytes.
    pub kernel: u64,
    /// The greatest usage so far, bytes.
    pub max_usage: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
    /// Page faults, and those that needed the disk, of this cgroup without its descendants.
    pub own_faults: [u64; 2],
    /// Limit of memory, bytes.
    pub memory_limit: u64,
    /// What is spared when memory is short (v1: soft limit, v2: low), bytes.
    pub reservation: u64,
    /// Limit of swap (v2), or of memory and swap together (v1), bytes.
    pub swap_limit: u64,
    /// Tasks killed for want of memory.
    pub oom_kills: u64,
    /// Limit of tasks.
    pub pids_max: u64,
    /// Huge pages by size.
    pub hugepages: Vec<Hugepages>,
    /// Block devices.
    pub devices: Vec<DeviceIo>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hugepages {
    /// For example `2MB`.
    pub page_size: String,
    /// Bytes in use.
    pub usage: u64,
    /// The greatest usage so far, bytes; v1 only.
    pub max_usage: Option<u64>,
}

/// What went to and from a block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major and minor number.
    pub device: (u32, u32),
    /// Bytes read and written.
    pub bytes: [u64; 2],
    /// Operations that read and that wrote.
    pub operations: [u64; 2],
}

type Read<'r> = &'r dyn Fn(&'static str, &'static str) -> io::Result<Option<String>>;

impl Cgroup {
    /// Reads everything; [`CgroupError::Gone`] when there is no such cgroup. Some thirty files.
    pub fn account(&self, files: &KeptFiles) -> Result<Account, CgroupError> {
        let stats = self.stats(files)?;
        let read = |controller, file| self.glance(files, (controller, file));
        let account = match self.layout() {
            Layout::V2 { .. } => v2(&read),
            Layout::V1 { .. } => v1(&read),
        };
        let mut account = account.map_err(|source| self.failed("reading", source))?;
        account.stats = stats;
        account.hugepages = self.hugepages();
        Ok(account)
    }

    fn hugepages(&self) -> Vec<Hugepages> {
        let ending = if matches!(self.layout(), Layout::V2 { .. }) { ".current" } else { ".usage_in_bytes" };
        let Some(dir) = self.dir("hugetlb") else { return Vec::new() };
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let sizes = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(ending)?;
            (!size.contains("rsvd")).then(|| size.to_string())
        });
        let read = |file: &str| stats::read(&dir, file).ok().flatten().and_then(|text| number(&text));
        sizes
            .map(|page_size| Hugepages {
                usage: read(&format!("hugetlb.{page_size}{ending}")).unwrap_or(0),
                max_usage: read(&format!("hugetlb.{page_size}.max_usage_in_bytes")),
                page_size,
            })
            .collect()
    }
}

fn v1(read: Read<'_>) -> io::Result<Account> {
    let text = |controller, file| Ok::<_, io::Error>(read(controller, file)?.unwrap_or_default());
    let count = |controller, file| Ok::<_, io::Error>(number(&text(controller, file)?).unwrap_or(0));
    let limit =
        |file| Ok::<_, io::Error>(Some(count("memory", file)?).filter(|n| *n < NO_LIMIT).unwrap_or(0));
    let (cpu, memory) = (text("cpu", "cpu.stat")?, text("memory", "memory.stat")?);
    let times = text("cpuacct", "cpuacct.stat")?;
    let ns = |key| value(&times, key) * (1_000_000_000 / USER_HZ);
    Ok(Account {
        user_ns: ns("user"),
        system_ns: ns("system"),
        periods: [value(&cpu, "nr_periods"), value(&cpu, "nr_throttled")],
        throttled_ns: value(&cpu, "throttled_time"),
        shares: count("cpu", "cpu.shares")?,
        period_us: count("cpu", "cpu.cfs_period_us")?,
        quota_us: number(&text("cpu", "cpu.cfs_quota_us")?),
        cache: value(&memory, "total_cache"),
        mapped_file: value(&memory, "total_mapped_file"),
        kernel: count("memory", "memory.kmem.usage_in_bytes")?,
        max_usage: count("memory", "memory.max_usage_in_bytes")?,
        limit_hits: count("memory", "memory.failcnt")?,
        own_faults: [value(&memory, "pgfault"), value(&memory, "pgmajfault")],
        memory_limit: limit("memory.limit_in_bytes")?,
        reservation: limit("memory.soft_limit_in_bytes")?,
        swap_limit: limit("memory.memsw.limit_in_bytes")?,
        oom_kills: oom_kills(&text("memory", "memory.oom_control")?),
        pids_max: count("pids", "pids.max")?,
        devices: v1_devices(
            &text("blkio", "blkio.throttle.io_service_bytes_recursive")?,
            &text("blkio", "blkio.throttle.io_serviced_recursive")?,
        ),
        ..Account::default()
    })
}

fn v2(read: Read<'_>) -> io::Result<Account> {
    let text = |file| Ok::<_, io::Error>(read("", file)?.unwrap_or_default());
    let count = |file| Ok::<_, io::Error>(number(&text(file)?).unwrap_or(0));
    let (cpu, memory, events) = (text("cpu.stat")?, text("memory.stat")?, text("memory.events")?);
    let max = text("cpu.max")?;
    let (quota, period) = max.trim().split_once(' ').unwrap_or_default();
    let faults = [value(&memory, "pgfault"), value(&memory, "pgmajfault")];
    Ok(Account {
        user_ns: value(&cpu, "user_usec") * 1_000,
        system_ns: value(&cpu, "system_usec") * 1_000,
        periods: [value(&cpu, "nr_periods"), value(&cpu, "nr_throttled")],
        throttled_ns: value(&cpu, "throttled_usec") * 1_000,
        shares: number(&text("cpu.weight")?).map_or(0, |w| 2 + w.saturating_sub(1) * 262_142 / 9_999),
        period_us: number(period).unwrap_or(0),
        quota_us: number(quota),
        cache: value(&memory, "file"),
        mapped_file: value(&memory, "file_mapped"),
        kernel: find(&memory, "kernel")
            .unwrap_or_else(|| value(&memory, "kernel_stack") + value(&memory, "slab")),
        max_usage: count("memory.peak")?,
        limit_hits: value(&events, "max"),
        // The kernel counts a cgroup only with its descendants.
        own_faults: faults,
        memory_limit: count("memory.max")?,
        reservation: count("memory.low")?,
        swap_limit: count("memory.swap.max")?,
        oom_kills: oom_kills(&events),
        pids_max: count("pids.max")?,
        devices: v2_devices(&text("io.stat")?),
        ..Account::default()
    })
}

/// Lines of the form `8:0 Read 4096`, and a total that has no device.
fn v1_devices(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(device), Some(word), Some(count)) =
                (words.next().and_then(device), words.next(), words.next().and_then(number))
            else {
                continue;
            };
            let direction = match word {
                "Read" => 0,
                "Write" => 1,
                _other => continue,
            };
            let io = of(&mut devices, device);
            let counters = if is_bytes { &mut io.bytes } else { &mut io.operations };
            counters[direction] = count;
        }
    }
    devices
}

/// Lines of the form `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …`.
fn v2_devices(text: &str) -> Vec<DeviceIo> {
    let line = |line: &str| {
        let (numbers, counters) = line.split_once(' ')?;
        let get = |key: &str| {
            let mut pairs = counters.split(' ').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == key).and_then(|(_, count)| number(count)).unwrap_or(0)
        };
        let (bytes, operations) = ([get("rbytes"), get("wbytes")], [get("rios"), get("wios")]);
        Some(DeviceIo { device: device(numbers)?, bytes, operations })
    };
    text.lines().filter_map(line).collect()
}

fn of(devices: &mut Vec<DeviceIo>, device: (u32, u32)) -> &mut DeviceIo {
    let index = devices.iter().position(|io| io.device == device).unwrap_or_else(|| {
        devices.push(DeviceIo { device, ..DeviceIo::default() });
        devices.len() - 1
    });
    &mut devices[index]
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_both_versions() {
        let io = |device, bytes, operations| DeviceIo { device, bytes, operations };
        let bytes = "8:0 Read 4096\n8:0 Write 10\n8:0 Sync 1\n253:1 Write 7\nTotal 4113\nrubbish\n";
        let operations = "8:0 Read 2\n8:0 Write 1\n7:0 Read 9\nTotal 12\n";
        let expect =
            [io((8, 0), [4096, 10], [2, 1]), io((253, 1), [0, 7], [0, 0]), io((7, 0), [0, 0], [9, 0])];
        assert_eq!(v1_devices(bytes, operations), expect);
        let text = "8:0 rbytes=4096 wbytes=10 rios=2 wios=1 dbytes=0 dios=0\nrubbish\n";
        assert_eq!(v2_devices(text), [io((8, 0), [4096, 10], [2, 1])]);
    }

    #[test]
    fn limits_of_both_versions() {
        let read = |files: &'static [(&'static str, &'static str)]| {
            move |_: &str, name: &str| {
                let file = files.iter().find(|(file, _)| *file == name);
                Ok::<_, io::Error>(file.map(|(_, text)| text.to_string()))
            }
        };
        let first = read(&[
            ("cpu.stat", "nr_periods 5\nnr_throttled 2\nthrottled_time 900\n"),
            ("cpuacct.stat", "user 7\nsystem 4\n"),
            ("cpu.shares", "1024\n"),
            ("cpu.cfs_quota_us", "-1\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.memsw.limit_in_bytes", "67108864\n"),
            ("memory.oom_control", "oom_kill_disable 0\noom_kill 3\n"),
        ]);
        let account = v1(&first).unwrap();
        assert_eq!((account.periods, account.throttled_ns, account.shares), ([5, 2], 900, 1024));
        assert_eq!((account.quota_us, account.memory_limit, account.swap_limit), (None, 0, 67_108_864));
        assert_eq!((account.user_ns, account.system_ns), (70_000_000, 40_000_000));
        assert_eq!(account.oom_kills, 3);
        let second = read(&[
            ("cpu.max", "20000 100000\n"),
            ("cpu.stat", "usage_usec 3\nuser_usec 2\nsystem_usec 1\n"),
            ("cpu.weight", "39\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nmax 4\noom_kill 1\n"),
            ("memory.stat", "file 5\nkernel 6\npgfault 8\n"),
        ]);
        let account = v2(&second).unwrap();
        assert_eq!((account.quota_us, account.period_us, account.shares), (Some(20_000), 100_000, 998));
        assert_eq!((account.user_ns, account.system_ns), (2_000, 1_000));
        assert_eq!((account.memory_limit, account.limit_hits, account.oom_kills), (0, 4, 1));
        assert_eq!((account.cache, account.kernel, account.own_faults), (5, 6, [8, 0]));
    }
}

//! Statistics of a cgroup, in the sense that cAdvisor gave the words of the CRI. Parsing is pure.

use std::io;
use std::path::Path;
use std::time::Instant;

use super::{Cgroup, CgroupError, Layout};
use crate::host::kept::{self, KeptFiles, Key, Shown};

const LIMIT: usize = 64 << 10;
/// v1 writes no limit as the greatest multiple of a page; nobody has that much memory.
const NO_LIMIT: u64 = 1 << 62;

/// What a cgroup with its descendants uses; a part is absent when its controller is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Processor time.
    pub cpu: Option<Cpu>,
    /// Memory without swap.
    pub memory: Option<Memory>,
    /// Swap; absent when the kernel does not account it.
    pub swap: Option<Swap>,
    /// Number of tasks.
    pub pids: Option<u64>,
    /// Pressure on block devices; cgroup v2 only.
    pub io_psi: Option<Psi>,
}

/// Processor time since the cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    /// All of it, in ns.
    pub usage_ns: u64,
    /// Pressure; cgroup v2 only.
    pub psi: Option<Psi>,
}

/// Memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// All that is charged, page cache included, in bytes.
    pub usage: u64,
    /// Usage without the inactive file pages, in bytes: what cannot be had back cheaply.
    pub working_set: u64,
    /// Limit less working set, in bytes; absent without a limit.
    pub available: Option<u64>,
    /// Anonymous memory, in bytes.
    pub rss: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that needed the disk.
    pub major_page_faults: u64,
    /// Pressure; cgroup v2 only.
    pub psi: Option<Psi>,
}

/// Swap.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Swap {
    /// In use, in bytes.
    pub usage: u64,
    /// What the limit leaves, in bytes; absent without a limit.
    pub available: Option<u64>,
}

/// Pressure stall information.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// Some tasks waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// Pressure in one cgroup, as far as the kernel tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// On processors.
    pub cpu: Option<Psi>,
    /// On memory.
    pub memory: Option<Psi>,
    /// On block devices.
    pub io: Option<Psi>,
}

/// How long tasks waited for a resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Sum, in ns.
    pub total_ns: u64,
    /// Share of the last 10 s, in percent.
    pub avg10: f64,
    /// Share of the last 60 s, in percent.
    pub avg60: f64,
    /// Share of the last 300 s, in percent.
    pub avg300: f64,
}

/// Processor time at a moment; two of them make a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The moment.
    pub at: Instant,
    /// [`Cpu::usage_ns`] then.
    pub usage_ns: u64,
}

/// Processor time a second, in ns, between two samples; `None` when they are no interval of one cgroup.
pub fn usage_nano_cores(before: Sample, now: Sample) -> Option<u64> {
    let elapsed = now.at.checked_duration_since(before.at)?.as_nanos();
    let used = u128::from(now.usage_ns.checked_sub(before.usage_ns)?);
    u64::try_from((used * 1_000_000_000).checked_div(elapsed)?).ok()
}

impl Stats {
    /// The sum of several cgroups, for a pod whose parent cgroup others use too. Pressure has no sum.
    pub fn total<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for part in parts {
            add(&mut sum.cpu, part.cpu, |sum, cpu| {
                sum.usage_ns += cpu.usage_ns;
                sum.psi = None;
            });
            add(&mut sum.memory, part.memory, |sum, memory| {
                sum.usage += memory.usage;
                sum.working_set += memory.working_set;
                sum.available = sum.available.zip(memory.available).map(|(a, b)| a + b);
                sum.rss += memory.rss;
                sum.page_faults += memory.page_faults;
                sum.major_page_faults += memory.major_page_faults;
                sum.psi = None;
            });
            add(&mut sum.swap, part.swap, |sum, swap| {
                sum.usage += swap.usage;
                sum.available = sum.available.zip(swap.available).map(|(a, b)| a + b);
            });
            add(&mut sum.pids, part.pids, |sum, pids| *sum += pids);
        }
        sum
    }
}

fn add<T>(sum: &mut Option<T>, part: Option<T>, merge: impl FnOnce(&mut T, T)) {
    match (sum.as_mut(), part) {
        (Some(sum), Some(part)) => merge(sum, part),
        (None, part) => *sum = part,
        (Some(_), None) => {}
    }
}

impl Cgroup {
    /// Reads the statistics, from files that are kept for the next time; [`CgroupError::Gone`] when there is no such
    /// cgroup.
    pub fn stats(&self, files: &KeptFiles) -> Result<Stats, CgroupError> {
        let read = |controller, file| self.look(files, (controller, file));
        let stats = match self.layout() {
            Layout::V2 { .. } => v2(|file| read("", file)),
            Layout::V1 { .. } => v1(read),
        };
        let stats = stats.map_err(|source| self.failed("reading statistics of", source))?;
        if stats == Stats::default() && !self.exists() {
            return Err(CgroupError::Gone(self.path().clone()));
        }
        Ok(stats)
    }

    /// Reads the pressure in a cgroup and its descendants: of processors, memory and block devices. None is there with
    /// cgroup v1, or where there is no such cgroup.
    pub fn pressure(&self, files: &KeptFiles) -> Pressure {
        let read = |file| match self.layout() {
            Layout::V2 { .. } => self.look(files, ("", file)).ok().flatten().map(|text| psi(&text)),
            Layout::V1 { .. } => None,
        };
        Pressure { cpu: read("cpu.pressure"), memory: read("memory.pressure"), io: read("io.pressure") }
    }

    /// The content of a file that is kept for the next time.
    fn look(&self, files: &KeptFiles, (controller, file): Key) -> io::Result<Option<String>> {
        let open = || {
            let dir = self.dir(controller).ok_or(io::ErrorKind::NotFound)?;
            std::fs::File::open(dir.join(file))
        };
        content(files.read((controller, file), (Shown::Whole, LIMIT), open))
    }

    /// The content of a file, which is not kept if it is not so already.
    pub(super) fn glance(&self, files: &KeptFiles, (controller, file): Key) -> io::Result<Option<String>> {
        match self.dir(controller) {
            _ if files.has((controller, file)) => self.look(files, (controller, file)),
            Some(dir) => read(&dir, file),
            None => Ok(None),
        }
    }
}

/// The content of a file; `None` when it, its cgroup or its feature is not there.
pub(super) fn read(dir: &Path, file: &str) -> io::Result<Option<String>> {
    content(std::fs::File::open(dir.join(file)).and_then(|file| kept::read(&file, Shown::Whole, LIMIT)))
}

fn content(read: io::Result<Vec<u8>>) -> io::Result<Option<String>> {
    match read {
        Ok(bytes) => {
            let text = String::from_utf8(bytes);
            Ok(Some(text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())))
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

fn v2(read: impl Fn(&'static str) -> io::Result<Option<String>>) -> io::Result<Stats> {
    let psi = |file| Ok::<_, io::Error>(read(file)?.map(|text| psi(&text)));
    let number = |file| Ok::<_, io::Error>(read(file)?.and_then(|text| number(&text)));
    let mut stats = Stats { pids: number("pids.current")?, io_psi: psi("io.pressure")?, ..Stats::default() };
    if let Some(text) = read("cpu.stat")? {
        let usage_ns = value(&text, "usage_usec") * 1_000;
        stats.cpu = Some(Cpu { usage_ns, psi: psi("cpu.pressure")? });
    }
    if let (Some(usage), Some(text)) = (number("memory.current")?, read("memory.stat")?) {
        let working_set = usage.saturating_sub(value(&text, "inactive_file"));
        stats.memory = Some(Memory {
            usage,
            working_set,
            available: number("memory.max")?.map(|limit| limit.saturating_sub(working_set)),
            rss: value(&text, "anon"),
            page_faults: value(&text, "pgfault"),
            major_page_faults: value(&text, "pgmajfault"),
            psi: psi("memory.pressure")?,
        });
    }
    if let Some(usage) = number("memory.swap.current")? {
        let available = number("memory.swap.max")?.map(|limit| limit.saturating_sub(usage));
        stats.swap = Some(Swap { usage, available });
    }
    Ok(stats)
}

fn v1(read: impl Fn(&'static str, &'static str) -> io::Result<Option<String>>) -> io::Result<Stats> {
    let number =
        |controller, file| Ok::<_, io::Error>(read(controller, file)?.and_then(|text| number(&text)));
    let mut stats = Stats { pids: number("pids", "pids.current")?, ..Stats::default() };
    stats.cpu = number("cpuacct", "cpuacct.usage")?.map(|usage_ns| Cpu { usage_ns, psi: None });
    let usage = number("memory", "memory.usage_in_bytes")?;
    if let (Some(usage), Some(text)) = (usage, read("memory", "memory.stat")?) {
        let working_set = usage.saturating_sub(value(&text, "total_inactive_file"));
        // Where no ancestor has a limit, the cgroup has none: most need no further file.
        let limit = |hierarchical, file| match value(&text, hierarchical) {
            NO_LIMIT.. => Ok(None),
            _ => Ok::<_, io::Error>(number("memory", file)?.filter(|limit| *limit < NO_LIMIT)),
        };
        let memory_limit = limit("hierarchical_memory_limit", "memory.limit_in_bytes")?;
        stats.memory = Some(Memory {
            usage,
            working_set,
            available: memory_limit.map(|limit| limit.saturating_sub(working_set)),
            rss: value(&text, "total_rss"),
            page_faults: value(&text, "total_pgfault"),
            major_page_faults: value(&text, "total_pgmajfault"),
            psi: None,
        });
        if let Some(usage) = find(&text, "total_swap") {
            let both = limit("hierarchical_memsw_limit", "memory.memsw.limit_in_bytes")?;
            let swap_limit = both.zip(memory_limit).map(|(both, memory)| both.saturating_sub(memory));
            let available = swap_limit.map(|limit| limit.saturating_sub(usage));
            stats.swap = Some(Swap { usage, available });
        }
    }
    Ok(stats)
}

/// A file with one number; `max` and rubbish are none.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The value of a key in a file with a key and a number on each line; 0 when it is not there.
pub(super) fn value(text: &str, key: &str) -> u64 {
    find(text, key).unwrap_or(0)
}

pub(super) fn find(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key).and_then(|(_, value)| number(value))
}

/// A pressure file; lines and keys that are not there are 0.
fn psi(text: &str) -> Psi {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or("");
        let get = |key: &str| line.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let share = |key| get(key).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let total_us = get("total").and_then(number).unwrap_or(0);
        Stall {
            total_ns: total_us.saturating_mul(1_000),
            avg10: share("avg10"),
            avg60: share("avg60"),
            avg300: share("avg300"),
        }
    };
    Psi { some: stall("some"), full: stall("full") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn files(all: &'static [(&str, &str)]) -> impl Fn(&str) -> io::Result<Option<String>> {
        move |wanted| Ok(all.iter().find(|(name, _)| *name == wanted).map(|(_, text)| text.to_string()))
    }

    #[test]
    fn statistics_of_version_2() {
        const MEMORY_STAT: &str =
            "anon 4096\nfile 8192\ninactive_anon 1\ninactive_file 3000\npgfault 12\npgmajfault 3\n";
        const CPU_STAT: &str = "usage_usec 1500\nuser_usec 1000\nnr_periods 0\n";
        const PRESSURE: &str = "\
some avg10=1.50 avg60=0.25 avg300=0.01 total=77
full avg10=0.00 avg60=0.00 avg300=0.00 total=5
";
        let stats = v2(files(&[
            ("cpu.stat", CPU_STAT),
            ("cpu.pressure", PRESSURE),
            ("memory.current", "10000\n"),
            ("memory.max", "20000\n"),
            ("memory.stat", MEMORY_STAT),
            ("memory.swap.current", "50\n"),
            ("memory.swap.max", "max\n"),
            ("pids.current", "7\n"),
            ("io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=2\n"),
        ]));
        let some = Stall { total_ns: 77_000, avg10: 1.5, avg60: 0.25, avg300: 0.01 };
        let full = Stall { total_ns: 5_000, ..Stall::default() };
        let expect = Stats {
            cpu: Some(Cpu { usage_ns: 1_500_000, psi: Some(Psi { some, full }) }),
            memory: Some(Memory {
                usage: 10_000,
                working_set: 7_000,
                available: Some(13_000),
                rss: 4_096,
                page_faults: 12,
                major_page_faults: 3,
                psi: None,
            }),
            swap: Some(Swap { usage: 50, available: None }),
            pids: Some(7),
            io_psi: Some(Psi { some: Stall { total_ns: 2_000, ..Stall::default() }, full: Stall::default() }),
        };
        assert_eq!(stats.unwrap(), expect);
        assert_eq!(v2(files(&[])).unwrap(), Stats::default());
    }

    #[test]
    fn statistics_of_version_1() {
        const MEMORY_STAT: &str = "\
rss 1\ninactive_file 1\nhierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 9223372036854771712
total_rss 5000\ntotal_swap 500\ntotal_inactive_file 20000\ntotal_pgfault 9\n";
        let read = files(&[
            ("cpuacct.usage", "123456789\n"),
            ("memory.usage_in_bytes", "10000\n"),
            ("memory.stat", MEMORY_STAT),
            ("pids.current", "2\n"),
        ]);
        let cpu = Cpu { usage_ns: 123_456_789, psi: None };
        let memory = Memory { usage: 10_000, rss: 5_000, page_faults: 9, ..Memory::default() };
        let swap = Swap { usage: 500, available: None };
        let expect =
            Stats { cpu: Some(cpu), memory: Some(memory), swap: Some(swap), pids: Some(2), io_psi: None };
        assert_eq!(v1(|_, file| read(file)).unwrap(), expect);
        assert_eq!(v1(|_, _| Ok(Some("rubbish".into()))).unwrap(), Stats::default());

        let limited = files(&[
            ("memory.usage_in_bytes", "10000\n"),
            ("memory.limit_in_bytes", "30000\n"),
            ("memory.memsw.limit_in_bytes", "30700\n"),
            (
                "memory.stat",
                "hierarchical_memory_limit 20000\nhierarchical_memsw_limit 20000\ntotal_swap 500\n",
            ),
        ]);
        let limited = v1(|_, file| limited(file)).unwrap();
        assert_eq!(limited.memory.unwrap().available, Some(20_000));
        assert_eq!(limited.swap, Some(Swap { usage: 500, available: Some(200) }));

        let total = Stats::total([&expect, &Stats::default(), &expect]);
        assert_eq!(total.cpu.unwrap().usage_ns, 246_913_578);
        assert_eq!(
            (total.memory.unwrap().usage, total.swap.unwrap().usage, total.pids),
            (20_000, 1_000, Some(4))
        );
    }

    #[test]
    fn rates() {
        let start = Instant::now();
        let sample = |ms, usage_ns| Sample { at: start + Duration::from_millis(ms), usage_ns };
        for (before, now, expect) in [
            (sample(0, 0), sample(500, 250_000_000), Some(500_000_000)),
            (sample(0, 7), sample(1000, 7), Some(0)),
            (sample(0, 0), sample(0, 5), None),
            (sample(5, 0), sample(0, 5), None),
            (sample(0, 9), sample(5, 5), None),
        ] {
            assert_eq!(usage_nano_cores(before, now), expect);
        }
    }
}

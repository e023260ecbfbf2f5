//! The limits of a cgroup in the words of systemd, which writes its own into the files again whenever it reads its
//! configuration anew. cgroup v2 only.

use super::{Cgroup, Layout, stats};

/// Steps of a percentage that systemd tells apart, of one processor.
const STEPS: u64 = 10_000;

impl Cgroup {
    /// What the files say now, each `Property=value`. Files that are not there have no property.
    pub fn properties(&self) -> Vec<String> {
        let Layout::V2 { mount } = self.layout() else { return Vec::new() };
        let dir = self.path().below(mount);
        of(&|file| stats::read(&dir, file).ok().flatten())
    }
}

fn of(read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let plain =
        [("CPUWeight", "cpu.weight"), ("AllowedCPUs", "cpuset.cpus"), ("AllowedMemoryNodes", "cpuset.mems")];
    let sizes =
        [("MemoryMax", "memory.max"), ("MemorySwapMax", "memory.swap.max"), ("MemoryHigh", "memory.high")];
    let mut list = Vec::new();
    list.extend(plain.iter().filter_map(|(name, file)| Some(format!("{name}={}", read(file)?.trim()))));
    list.extend(sizes.iter().filter_map(|(name, file)| Some(format!("{name}={}", size(read(file)?.trim())))));
    list.extend(read("cpu.max").into_iter().flat_map(|text| quota(&text)));
    list
}

fn size(text: &str) -> &str {
    if text == "max" { "infinity" } else { text }
}

/// `cpu.max` as a share of one processor, rounded up to what systemd can say, and the period.
fn quota(text: &str) -> Vec<String> {
    let Some((quota, period)) = text.trim().split_once(' ') else { return Vec::new() };
    let Ok(period) = period.parse::<u64>() else { return Vec::new() };
    let share = quota.parse::<u64>().map(|quota| (quota * STEPS).div_ceil(period.max(1)));
    let share = share.map_or_else(|_| String::new(), |share| format!("{}.{:02}%", share / 100, share % 100));
    vec![format!("CPUQuota={share}"), format!("CPUQuotaPeriodSec={period}us")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_the_words_of_systemd() {
        let check = |files: &[(&str, &str)], expect: &[&str]| {
            let read =
                |file: &str| files.iter().find(|(name, _)| *name == file).map(|(_, text)| text.to_string());
            assert_eq!(of(&read), expect, "{files:?}");
        };
        check(&[], &[]);
        check(
            &[
                ("cpu.weight", "79\n"),
                ("memory.max", "max\n"),
                ("memory.swap.max", "0\n"),
                ("cpuset.cpus", "\n"),
            ],
            &["CPUWeight=79", "AllowedCPUs=", "MemoryMax=infinity", "MemorySwapMax=0"],
        );
        check(&[("cpu.max", "40000 100000\n")], &["CPUQuota=40.00%", "CPUQuotaPeriodSec=100000us"]);
        check(&[("cpu.max", "33333 20000\n")], &["CPUQuota=166.67%", "CPUQuotaPeriodSec=20000us"]);
        check(&[("cpu.max", "max 100000\n")], &["CPUQuota=", "CPUQuotaPeriodSec=100000us"]);
        check(&[("cpu.max", "rubbish")], &[]);
    }
}

//! What the processes of a container hold open. They are the container's, so everything counted is bounded.

use std::path::Path;

/// Descriptors looked at in one container.
const MAX_DESCRIPTORS: usize = 1 << 16;

/// Open things of some processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Processes.
    pub processes: u64,
    /// File descriptors, sockets among them.
    pub descriptors: u64,
    /// Sockets.
    pub sockets: u64,
}

/// Counts what these processes hold; what ends meanwhile is counted or not. Blocks: some microseconds a descriptor.
pub fn holdings(pids: &[i32]) -> Holdings {
    let mut held = Holdings { processes: pids.len() as u64, ..Holdings::default() };
    let directories = pids.iter().map(|pid| format!("/proc/{pid}/fd"));
    let entries = directories.filter_map(|path| std::fs::read_dir(path).ok()).flatten().flatten();
    for entry in entries.take(MAX_DESCRIPTORS) {
        held.descriptors += 1;
        let target = std::fs::read_link(entry.path());
        held.sockets += u64::from(target.is_ok_and(|target| is_socket(&target)));
    }
    held
}

fn is_socket(target: &Path) -> bool {
    target.to_str().is_some_and(|target| target.starts_with("socket:["))
}

/// The soft limit of open files of a process; `None` without a limit, or when it is gone.
pub fn open_files_limit(pid: i32) -> Option<u64> {
    parse_limit(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

fn parse_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_holds_something() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let held = holdings(&[pid, i32::MAX]);
        assert!(held.processes == 2 && held.descriptors > held.sockets && held.sockets >= 1, "{held:?}");
        assert!(open_files_limit(pid) != Some(0));
        drop(socket);
    }

    #[test]
    fn limits_are_found_by_name() {
        let text = "Limit   Soft Limit   Hard Limit   Units\nMax processes  1  2  processes\nMax open files  1024  4096  files\n";
        assert_eq!(parse_limit(text), Some(1024));
        assert_eq!(parse_limit("Max open files  unlimited  unlimited  files\n"), None);
        assert_eq!(parse_limit(""), None);
    }
}

//! Processes of the node: what those of a container hold open, and an end to helpers that outlived who ran them.
//! What a process says of itself is read within bounds.

use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

/// Longest command line or environment that is looked at, bytes.
const TEXT_LIMIT: u64 = 1 << 20;

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

/// What a process says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Its command line.
    Arguments,
    /// Its first environment.
    Environment,
}

/// Kills every process in this one's PID namespace whose arguments or environment `is_wanted`, and waits until it is
/// gone. Blocks for up to `patience`.
///
/// Those of containers with a PID namespace of their own are not looked at: reading what they say may wait for them.
pub fn end_all(said: Said, patience: Duration, is_wanted: &dyn Fn(&[&[u8]]) -> bool) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let namespace = std::fs::read_link("/proc/self/ns/pid")?;
    loop {
        let mut killed = 0;
        for pid in all()? {
            let is_near = |link: &Path| link == namespace;
            let link = std::fs::read_link(format!("/proc/{}/ns/pid", pid.as_raw_nonzero()));
            killed += u32::from(link.is_ok_and(|link| is_near(&link)) && kill_if(pid, said, is_wanted));
        }
        if killed == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a killed process does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn all() -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        pids.extend(name.to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)));
    }
    Ok(pids)
}

/// The handle is opened before the look, so that the process looked at is the one that is killed.
fn kill_if(pid: Pid, said: Said, is_wanted: &dyn Fn(&[&[u8]]) -> bool) -> bool {
    let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let file = match said {
        Said::Arguments => "cmdline",
        Said::Environment => "environ",
    };
    let mut text = Vec::new();
    let read = std::fs::File::open(format!("/proc/{}/{file}", pid.as_raw_nonzero()))
        .and_then(|file| file.take(TEXT_LIMIT).read_to_end(&mut text));
    let words: Vec<&[u8]> = text.strip_suffix(b"\0").unwrap_or(&text).split(|byte| *byte == 0).collect();
    read.is_ok() && is_wanted(&words) && rustix::process::pidfd_send_signal(&handle, Signal::KILL).is_ok()
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

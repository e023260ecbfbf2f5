//! What the monitor needs of a container's cgroup: its count of out-of-memory kills, and an end to its processes.
//! Knows no layout: the daemon names files and directories.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// Rounds of reading and killing on a host without `cgroup.kill`; each takes what the last one missed.
const ROUNDS: usize = 5;
/// How long a v1 freezer may take.
const FREEZE: Duration = Duration::from_millis(50);
const MAX_DEPTH: usize = 8;

/// The number on the line `oom_kill N`; 0 where the file is missing or says nothing.
pub fn oom_kills(counter: Option<&Path>) -> u64 {
    let text = counter.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    parse_oom_kills(&text)
}

fn parse_oom_kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// Kills every process in `directories` and below. Missing directories have none.
pub fn kill_all(directories: &[PathBuf]) {
    for directory in directories.iter().filter(|directory| is_populated(directory, MAX_DEPTH)) {
        if std::fs::write(directory.join("cgroup.kill"), "1").is_err() {
            kill_frozen(directory);
        }
    }
}

fn is_populated(directory: &Path, depth: usize) -> bool {
    std::fs::read_to_string(directory.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
        || depth > 0 && children(directory).any(|child| is_populated(&child, depth - 1))
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Without `cgroup.kill`: frozen processes do not fork away, and get the signal once thawed.
fn kill_frozen(directory: &Path) {
    let state = directory.join("freezer.state");
    let frozen = std::fs::write(&state, "FROZEN").is_ok();
    let deadline = std::time::Instant::now() + FREEZE;
    while frozen && std::time::Instant::now() < deadline {
        match std::fs::read_to_string(&state) {
            Ok(text) if text.trim() == "FREEZING" => std::thread::sleep(Duration::from_millis(1)),
            _ => break,
        }
    }
    for _ in 0..ROUNDS {
        if !kill_tree(directory, MAX_DEPTH) || frozen {
            break;
        }
    }
    if frozen {
        let _gone_with_its_processes = std::fs::write(&state, "THAWED");
    }
}

/// Signals the processes of one directory and those below; whether there were any.
fn kill_tree(directory: &Path, depth: usize) -> bool {
    let mut any = false;
    let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let others = |pid: &Pid| *pid != rustix::process::getpid();
    for pid in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).filter(others) {
        any = true;
        let _ended_already = rustix::process::kill_process(pid, Signal::KILL);
    }
    if depth > 0 {
        for child in children(directory) {
            any |= kill_tree(&child, depth - 1);
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_in_both_formats() {
        let check = |text: &str, expect| assert_eq!(parse_oom_kills(text), expect, "{text:?}");
        check("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 1\n", 2);
        check("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1);
        check("oom_kill_disable 1\nunder_oom 0\n", 0);
        check("", 0);
    }
}

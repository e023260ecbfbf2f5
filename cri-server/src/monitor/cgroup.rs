//! What the monitor needs of a container's cgroup: its count of out-of-memory kills, and an end to its processes.
//! Knows no layout: the daemon names files and directories.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// Rounds of reading and killing on a host without `cgroup.kill`; each takes what the last one missed.
const ROUNDS: usize = 5;
/// How long a v1 freezer may take.
const FREEZE: Duration = Duration::from_millis(50);
/// How long the processes of a killed command may take to end.
const SESSION: Duration = Duration::from_millis(100);
/// How long an OCI runtime that has handed a process over may take to name it, on a node without a free processor.
const NAMING: Duration = Duration::from_secs(1);
const MAX_DEPTH: usize = 8;
/// Longest file of counters that is read, bytes; those there are have less than 200.
const COUNTERS: usize = 4096;

/// The number on the line `oom_kill N`, 0 where there is no such line; `None` where the file is gone.
pub fn read_oom_kills(counter: Option<&Path>) -> Option<u64> {
    let mut text = [0; COUNTERS];
    // The kernel gives all of such a file at once.
    let length = std::fs::File::open(counter?).and_then(|mut file| file.read(&mut text)).ok()?;
    Some(parse_oom_kills(&String::from_utf8_lossy(&text[..length])))
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

/// Kills the process `leader` and all of its session and descent that is in `directories` or below. `leader` is a
/// child of this process and not reaped, so the number is its own.
///
/// Its session may have another number: crun makes the session in a process between that has ended.
pub fn kill_session(leader: i32, directories: &[PathBuf]) {
    let session_of = |pid: i32| rustix::process::getsid(Some(Pid::from_raw(pid)?)).ok();
    let own = rustix::process::getsid(None).ok();
    let session = session_of(leader).filter(|session| Some(*session) != own);
    let session = session.map_or(leader, |session| session.as_raw_nonzero().get());
    kill_until_unseen(directories, |processes| session_and_descent(leader, session, processes));
}

/// Kills `runtime`, a run of the OCI runtime, with its process group and what it has made in `directories` or below:
/// a process that it has let go already lives on without it, in a session of its own. `runtime` is a child of this
/// process and not reaped. It is stopped first, so that it stays the parent of what it made and makes nothing more.
///
/// crun hands what it makes to this process before it names it: where there are such processes, begun since and not
/// `known`, it may go on until `is_named` or for a moment, and who asked kills what it has named.
pub fn kill_run(
    runtime: i32,
    directories: &[PathBuf],
    known: impl Fn(i32) -> bool,
    is_named: impl Fn() -> bool,
) {
    let Some(pid) = Pid::from_raw(runtime) else { return };
    stop(pid);
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let began = Lineage::of(runtime).map_or(0, |run| run.began);
    let mut processes = Vec::new();
    directories.iter().for_each(|directory| collect_lineage(directory, MAX_DEPTH, &mut processes));
    let handed_over =
        |process: &Lineage| process.parent == own && process.began >= began && !known(process.pid);
    if !is_named() && processes.iter().any(handed_over) {
        let _ended_already = rustix::process::kill_process(pid, Signal::CONT);
        let deadline = std::time::Instant::now() + NAMING;
        while !is_named() && Lineage::of(runtime).is_some() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        stop(pid);
    }
    kill_until_unseen(directories, |processes| session_and_descent(runtime, runtime, processes).split_off(1));
    let _ended_already = rustix::process::kill_process_group(pid, Signal::KILL);
}

/// Stops a child and waits for that, or for its end; what is reaped is left to be reaped.
fn stop(child: Pid) {
    let _ended_already = rustix::process::kill_process(child, Signal::STOP);
    let options =
        WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    let deadline = std::time::Instant::now() + SESSION;
    while let Ok(None) = rustix::process::waitid(WaitId::Pid(child), options) {
        if std::time::Instant::now() >= deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills the processes in `directories` and below that `find` picks.
///
/// A process that gets the signal within a fork still makes the child, which shows no earlier than its parent is
/// gone: this ends when nothing is seen twice.
fn kill_until_unseen(directories: &[PathBuf], find: impl Fn(&[Lineage]) -> Vec<i32>) {
    let deadline = std::time::Instant::now() + SESSION;
    let (mut rounds, mut unseen) = (0, 0);
    // Time alone does not count: all of it may pass while this process waits for a processor.
    while unseen < 2 && (rounds < ROUNDS || std::time::Instant::now() < deadline) {
        rounds += 1;
        let mut processes = Vec::new();
        directories.iter().for_each(|directory| collect_lineage(directory, MAX_DEPTH, &mut processes));
        let victims = find(&processes);
        for pid in victims.iter().copied().filter_map(Pid::from_raw) {
            let _ended_already = rustix::process::kill_process(pid, Signal::KILL);
        }
        if processes.iter().any(|process| victims.contains(&process.pid)) {
            unseen = 0;
            std::thread::sleep(Duration::from_millis(1));
        } else {
            unseen += 1;
        }
    }
}

/// A process, its parent, its session, and when it began, ticks since boot.
#[derive(Debug, Clone, Copy)]
struct Lineage {
    pid: i32,
    parent: i32,
    session: i32,
    began: u64,
}

impl Lineage {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// From `/proc/pid/stat`; a process that is a zombie has ended already.
    fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = (stat.split_once(' ')?.0, stat.rsplit_once(')')?.1);
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |at: usize| fields.get(at)?.parse().ok();
        let began = fields.get(19)?.parse().ok()?;
        let alive = fields.first() != Some(&"Z");
        alive.then_some(Self { pid: pid.parse().ok()?, parent: field(1)?, session: field(3)?, began })
    }
}

fn collect_lineage(directory: &Path, depth: usize, into: &mut Vec<Lineage>) {
    let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    into.extend(processes.lines().filter_map(|pid| Lineage::of(pid.parse().ok()?)));
    if depth > 0 {
        children(directory).for_each(|child| collect_lineage(&child, depth - 1, into));
    }
}

/// The leader first.
fn session_and_descent(leader: i32, session: i32, processes: &[Lineage]) -> Vec<i32> {
    let mut victims = vec![leader];
    loop {
        let known = victims.len();
        for process in processes.iter().filter(|process| process.pid != leader) {
            let belongs = process.session == session || victims.contains(&process.parent);
            if belongs && !victims.contains(&process.pid) {
                victims.push(process.pid);
            }
        }
        if victims.len() == known {
            return victims;
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
    let asked = std::fs::write(&state, "FROZEN").is_ok();
    let deadline = std::time::Instant::now() + FREEZE;
    let says = |word: &str| std::fs::read_to_string(&state).is_ok_and(|text| text.trim() == word);
    while asked && says("FREEZING") && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let frozen = asked && says("FROZEN");
    for _ in 0..ROUNDS {
        if !kill_tree(directory, MAX_DEPTH) || frozen {
            break;
        }
    }
    if asked {
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
    fn a_session_and_its_descent_are_found() {
        let lines = [
            "10 (sh) S 1 10 10 0 -1",
            "11 (a b) c) R 10 10 10 0 -1",
            "12 (daemon) S 11 12 12 0 -1",
            "13 (own child) S 12 12 12 0 -1",
            "14 (left behind) S 1 14 10 0 -1",
            "15 (zombie) Z 10 10 10 0 -1",
            "16 (other) S 1 16 16 0 -1",
            "18 (led by one that has ended) S 1 18 17 0 -1",
            "19 (its orphan) S 1 18 17 0 -1",
            "garbage",
        ];
        let began = " 1".repeat(13);
        let parse = |line: &&str| Lineage::parse(&format!("{line}{began} 77"));
        let processes: Vec<_> = lines.iter().filter_map(parse).collect();
        assert_eq!(processes[0].began, 77);
        let mut victims = session_and_descent(10, 10, &processes);
        victims.sort_unstable();
        assert_eq!(victims, [10, 11, 12, 13, 14]);
        assert_eq!(session_and_descent(16, 16, &processes), [16]);
        assert_eq!(session_and_descent(18, 17, &processes), [18, 19]);
    }

    #[test]
    fn the_counter_is_found_in_both_formats() {
        let check = |text: &str, expect| assert_eq!(parse_oom_kills(text), expect, "{text:?}");
        check("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 1\n", 2);
        check("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1);
        check("oom_kill_disable 1\nunder_oom 0\n", 0);
        check("", 0);
    }
}

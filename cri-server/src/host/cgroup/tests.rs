//! The cgroups of this node, and pretended ones of version 2.

use std::process::{Child, Command};

use super::*;
use crate::host::kept::KeptFiles;

const PATIENCE: Duration = Duration::from_secs(10);

/// A cgroup that only this test uses; emptied and removed at the end.
struct Own {
    parent: Cgroup,
    cgroup: Cgroup,
}

impl Own {
    /// `None`, with a message, when this user or node cannot have one.
    fn new(name: &str) -> Option<Self> {
        let usable = rustix::process::geteuid().is_root().then(Layout::detect).and_then(Result::ok);
        let Some(layout) = usable else {
            assert!(std::env::var_os("E2E_REQUIRE").is_none(), "root and a cgroup hierarchy are required");
            eprintln!("SKIPPED: cgroups need root and a mounted hierarchy");
            return None;
        };
        let path = CgroupPath::parse(&format!("/berth-test-{name}-{}", std::process::id())).unwrap();
        let parent = Cgroup::new(&Arc::new(layout), path);
        parent.create().unwrap();
        let cgroup = leaf(&parent, "own");
        Some(Self { parent, cgroup })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.parent.kill_all(PATIENCE).unwrap();
        self.parent.remove(PATIENCE).unwrap();
    }
}

/// A cgroup for processes, as an OCI runtime makes it: on version 2, one that passes controllers on takes none.
fn leaf(parent: &Cgroup, name: &str) -> Cgroup {
    let leaf = Cgroup::new(&parent.layout, parent.path().child(name).unwrap());
    match parent.layout() {
        Layout::V1 { .. } => leaf.create().unwrap(),
        Layout::V2 { .. } => leaf.dirs().iter().for_each(|dir| std::fs::create_dir(dir).unwrap()),
    }
    leaf
}

/// A process in a cgroup, in all hierarchies that have it.
#[expect(clippy::disallowed_methods, reason = "processes to put into cgroups")]
fn run_in(cgroup: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("sh");
    let child = child.args(["-c", &format!("read go; {script}")]).stdin(std::process::Stdio::piped());
    let mut child = child.spawn().unwrap();
    for dir in cgroup.dirs().iter().filter(|dir| dir.is_dir()) {
        std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    child
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn everything_in_a_cgroup_is_killed_and_it_goes() {
    let Some(own) = Own::new("kill") else { return };
    let nested = leaf(&own.cgroup, "nested");
    let mut children =
        [run_in(&own.cgroup, "while :; do sleep 0.01 & done"), run_in(&nested, "exec sleep 1000")];
    until("processes fork", || own.cgroup.procs().unwrap().len() > 4);
    assert!(
        matches!(own.cgroup.remove(Duration::ZERO), Err(CgroupError::Busy { left, .. }) if !left.is_empty())
    );
    own.cgroup.kill_all(PATIENCE).unwrap();
    for child in &mut children {
        assert_eq!(child.wait().unwrap().to_string(), "signal: 9 (SIGKILL)");
    }
    assert_eq!(own.cgroup.procs().unwrap(), []);
    own.cgroup.remove(PATIENCE).unwrap();
    assert!(!own.cgroup.exists());
    own.cgroup.remove(PATIENCE).unwrap();
    own.cgroup.kill_all(PATIENCE).unwrap();
    assert!(matches!(own.cgroup.stats(&KeptFiles::default()), Err(CgroupError::Gone(_))));
}

#[test]
fn a_cgroup_that_was_left_frozen_can_be_killed() {
    let Some(own) = Own::new("frozen") else { return };
    let mut child = run_in(&own.cgroup, "exec sleep 1000");
    let (file, word) = match own.cgroup.layout() {
        Layout::V1 { .. } => ("freezer.state", "FROZEN"),
        Layout::V2 { .. } => ("cgroup.freeze", "1"),
    };
    std::fs::write(own.cgroup.dir("freezer").unwrap().join(file), word).unwrap();
    own.cgroup.kill_all(PATIENCE).unwrap();
    assert_eq!(child.wait().unwrap().to_string(), "signal: 9 (SIGKILL)");
}

#[test]
fn statistics_of_a_busy_process() {
    let Some(own) = Own::new("stats") else { return };
    let mut child = run_in(&own.cgroup, "exec sh -c 'while :; do :; done'");
    let files = KeptFiles::default();
    until("its use is counted", || {
        let stats = own.cgroup.stats(&files).unwrap();
        let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
        cpu.usage_ns > 20_000_000 && memory.usage > 0 && memory.page_faults > 0
    });
    until("its kinds of time are counted", || own.cgroup.account(&files).unwrap().user_ns > 0);
    let stats = own.cgroup.stats(&files).unwrap();
    let memory = stats.memory.unwrap();
    assert!(memory.working_set <= memory.usage, "{stats:?}");
    assert_eq!((stats.pids, memory.available), (Some(1), None));
    assert_eq!(own.cgroup.procs().unwrap().len(), 1);
    assert_eq!(oom_kills(&std::fs::read_to_string(own.cgroup.oom_file().unwrap()).unwrap()), 0);
    child.kill().unwrap();
    child.wait().unwrap();
    // What is kept of it is neither in its way nor taken for it.
    own.cgroup.remove(PATIENCE).unwrap();
    assert!(matches!(own.cgroup.stats(&files), Err(CgroupError::Gone(_))));
}

#[test]
fn the_kernels_oom_kills_are_counted() {
    let Some(own) = Own::new("oom") else { return };
    let limit = match own.cgroup.layout() {
        Layout::V1 { .. } => "memory.limit_in_bytes",
        Layout::V2 { .. } => "memory.max",
    };
    std::fs::write(own.cgroup.dir("memory").unwrap().join(limit), "8388608").unwrap();
    let mut child = run_in(&own.cgroup, "exec head -c 64m /dev/zero | tail");
    child.wait().unwrap();
    let count = oom_kills(&std::fs::read_to_string(own.cgroup.oom_file().unwrap()).unwrap());
    assert!(count > 0);
}

#[test]
fn the_root_is_left_alone() {
    let layout = Arc::new(Layout::V2 { mount: "/nonexistent".into() });
    let root = Cgroup::new(&layout, CgroupPath::parse("/").unwrap());
    assert!(matches!(root.kill_all(Duration::ZERO), Err(CgroupError::Root)));
    assert!(matches!(root.remove(Duration::ZERO), Err(CgroupError::Root)));
}

#[test]
fn version_2_delegates_its_controllers_and_kills_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().to_path_buf();
    std::fs::create_dir_all(mount.join("berth/pod")).unwrap();
    for (file, text) in [
        ("cgroup.controllers", "cpu memory\n"),
        ("cgroup.subtree_control", ""),
        ("berth/pod/cgroup.kill", ""),
    ] {
        std::fs::write(mount.join(file), text).unwrap();
    }
    let layout = Arc::new(Layout::V2 { mount: mount.clone() });
    let cgroup = Cgroup::new(&layout, CgroupPath::parse("/berth/pod").unwrap());
    cgroup.create().unwrap();
    assert_eq!(std::fs::read_to_string(mount.join("cgroup.subtree_control")).unwrap(), "+memory");
    cgroup.kill_all(Duration::ZERO).unwrap();
    assert_eq!(std::fs::read_to_string(mount.join("berth/pod/cgroup.kill")).unwrap(), "1");
    assert_eq!(cgroup.oom_file(), Some(mount.join("berth/pod/memory.events")));
}

#[test]
fn the_pressure_on_a_pod_is_that_of_its_own_cgroup() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Arc::new(Layout::V2 { mount: dir.path().to_path_buf() });
    let cgroup = Cgroup::new(&layout, CgroupPath::parse("/pod").unwrap());
    assert_eq!(cgroup.pressure(&KeptFiles::default()), Pressure::default());
    std::fs::create_dir(dir.path().join("pod")).unwrap();
    for (file, total) in [("cpu.pressure", 1), ("memory.pressure", 2), ("io.pressure", 3)] {
        let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
        std::fs::write(dir.path().join("pod").join(file), text).unwrap();
    }
    let pressure = cgroup.pressure(&KeptFiles::default());
    let totals = [pressure.cpu, pressure.memory, pressure.io].map(|psi| psi.unwrap().some.total_ns);
    assert_eq!(totals, [1_000, 2_000, 3_000]);
}

#[test]
fn oom_kills_of_both_versions() {
    for (text, expect) in [
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
        ("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n", 1),
        ("oom_kill_disable 0\nunder_oom 0\n", 0),
    ] {
        assert_eq!(oom_kills(text), expect);
    }
}

//! Sandboxes: namespaces in one go, pinned, configured, undone when something fails.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cri_server::host::monitor::{Event, Monitor, MonitorError, NamespaceKind, NewNamespace, PodSetup};
use cri_server::monitor::protocol::ToMonitor;
use cri_server::monitor::wire::Outgoing;
use rustix::process::{Pid, Signal, kill_process};

use crate::ground::{Ground, binary, chain, exit_of, next, on_ground, until, with_each_runtime};

const KINDS: [(NamespaceKind, &str); 4] = [
    (NamespaceKind::Net, "net"),
    (NamespaceKind::Ipc, "ipc"),
    (NamespaceKind::Uts, "uts"),
    (NamespaceKind::Pid, "pid"),
];

fn setup(ground: &Ground, kinds: &[(NamespaceKind, &str)]) -> PodSetup {
    let new = |(kind, name): &(NamespaceKind, &str)| NewNamespace {
        kind: *kind,
        pin: ground.path("ns").join(name),
    };
    PodSetup { namespaces: kinds.iter().map(new).collect(), ..ground.setup() }
}

fn inode(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn pins_left(ground: &Ground) -> bool {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let dir = ground.path("ns");
    mounts.contains(dir.to_str().unwrap())
        || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

#[test]
fn namespaces_are_made_configured_and_pinned() {
    with_each_runtime(async |ground, runtime| {
        let mut setup = setup(ground, &KINDS[..3]);
        setup.hostname = Some("pod-name".into());
        setup.sysctls = BTreeMap::from([
            ("net.ipv4.ip_unprivileged_port_start".into(), "0".into()),
            ("kernel.shm_rmid_forced".into(), "1".into()),
        ]);
        let monitor = Monitor::spawn(&binary(), &setup).await.unwrap();
        assert_eq!(monitor.welcome().pod_init, None);
        let mut events = monitor.events();
        for (_, name) in &KINDS[..3] {
            let own = inode(format!("/proc/thread-self/ns/{name}"));
            assert_ne!(inode(ground.path("ns").join(name)), own);
            assert_eq!(inode(format!("/proc/{}/ns/{name}", monitor.welcome().monitor_pid)), own);
        }
        let mut plan = ground.plan(
            runtime,
            "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; cat /proc/net/dev | grep -c lo; \
             busybox ping -c1 -w5 127.0.0.1 >/dev/null && echo up",
        );
        let path = |name: &str| ground.path("ns").join(name);
        plan.set(
            "/linux/namespaces",
            serde_json::json!([
                {"type": "pid"}, {"type": "mount"},
                {"type": "network", "path": path("net")},
                {"type": "ipc", "path": path("ipc")},
                {"type": "uts", "path": path("uts")},
            ]),
        );
        plan.set("/process/capabilities", serde_json::json!({"bounding": ["CAP_NET_RAW"], "effective": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"]}));
        std::os::unix::fs::symlink("busybox", ground.path("rootfs/bin/grep")).unwrap();
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        exit_of(&mut events, plan.id()).await;
        assert_eq!(
            plan.lines(),
            ["stdout F pod-name", "stdout F 0", "stdout F 1", "stdout F 1", "stdout F up"]
        );
        monitor.shutdown().await.unwrap();
        assert!(pins_left(ground), "the pins are the daemon's to remove");
    });
}

#[test]
fn a_shared_pid_namespace_has_an_init_that_reaps_and_dies_with_the_monitor() {
    with_each_runtime(async |ground, runtime| {
        let monitor = Monitor::spawn(&binary(), &setup(ground, &KINDS)).await.unwrap();
        let mut events = monitor.events();
        let init = monitor.welcome().pod_init.unwrap();
        let comm = || fs::read_to_string(format!("/proc/{init}/comm")).unwrap();
        until("the init's name", || comm() == "pod-init\n").await;
        let mut plan = ground.plan(
            runtime,
            "cat /proc/1/comm; busybox kill -TERM 1; busybox kill -KILL 1; (sleep 0.01 &); sleep 0.2; \
             busybox ps -o stat | grep -c Z; exit 4",
        );
        std::os::unix::fs::symlink("busybox", ground.path("rootfs/bin/grep")).unwrap();
        plan.share_pid(Some(&ground.path("ns/pid")));
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 4);
        assert_eq!(plan.lines(), ["stdout F pod-init", "stdout F 0"]);
        assert_eq!(monitor.state().await.unwrap().pod_init, Some(init));

        let mut plan = ground.plan(runtime, "sleep 1000");
        plan.share_pid(Some(&ground.path("ns/pid")));
        plan.write_bundle();
        let main = monitor.create(plan.spec.clone()).await.unwrap().pid;
        monitor.start(plan.id()).await.unwrap();
        let exec = ground.exec(
            &plan,
            "x",
            &["/bin/sh", "-c", "exit 5"],
            crate::ground::to_files(&ground.path("o"), &ground.path("e")),
        );
        monitor.exec(exec).await.unwrap();
        assert_eq!(crate::ground::exec_exit_of(&mut events, "x").await, 5);
        assert!(Monitor::kill(&ground.path("pod")).unwrap());
        // Whoever adopts it may take its time to reap.
        let stat = || fs::read_to_string(format!("/proc/{main}/stat")).unwrap_or_default();
        let ended = || stat().rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'));
        until("the container's end", ended).await;
        monitor.gone().await;
    });
}

#[test]
fn the_end_of_the_init_is_told() {
    on_ground(async |ground| {
        let monitor = Monitor::spawn(&binary(), &setup(ground, &KINDS)).await.unwrap();
        let mut events = monitor.events();
        kill_process(Pid::from_raw(monitor.welcome().pod_init.unwrap()).unwrap(), Signal::TERM).unwrap();
        assert!(matches!(next(&mut events).await, Event::PodInitExited));
        assert_eq!(monitor.state().await.unwrap().pod_init, None);
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_setup_that_fails_leaves_nothing() {
    on_ground(async |ground| {
        let check = async |setup: PodSetup, message: &str| {
            let error = Monitor::spawn(&binary(), &setup).await.unwrap_err();
            assert!(matches!(error, MonitorError::Setup(_)), "{error:?}");
            assert!(chain(&error).contains(message), "{}", chain(&error));
            assert!(!pins_left(ground));
            assert!(!ground.path("pod/monitor.sock").exists());
        };
        let with_sysctl = |name: &str, value: &str| PodSetup {
            sysctls: BTreeMap::from([(name.into(), value.into())]),
            ..setup(ground, &KINDS)
        };
        check(with_sysctl("net.ipv4.no_such", "1"), "net.ipv4.no_such").await;
        check(with_sysctl("net.ipv4.ip_forward", "rubbish"), "net.ipv4.ip_forward").await;
        check(with_sysctl("kernel.panic", "1"), "belongs to the whole node").await;
        check(with_sysctl("net/../kernel/panic", "1"), "is not the name of a sysctl").await;
        check(PodSetup { hostname: Some("x".into()), ..setup(ground, &KINDS[..1]) }, "UTS").await;
        check(PodSetup { hostname: Some("x".repeat(65)), ..setup(ground, &KINDS) }, "host name").await;
        let mut taken = setup(ground, &KINDS);
        taken.namespaces[3].pin = ground.path("pod");
        check(taken, "pinning the pid namespace").await;
        let gone = PodSetup { dir: ground.path("no/pod"), ..setup(ground, &KINDS) };
        check(gone, "monitor's lock").await;
    });
}

#[test]
fn a_daemon_that_dies_during_the_setup_leaves_nothing() {
    on_ground(async |ground| {
        let (near, far) = UnixStream::pair().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a daemon that does not wait for its monitor")]
        let mut monitor = std::process::Command::new(binary())
            .arg("serve")
            .stdin(std::os::fd::OwnedFd::from(far))
            .spawn()
            .unwrap();
        let setup = ToMonitor::Setup { version: 1, setup: setup(ground, &KINDS) };
        Outgoing::new(&setup, Vec::new()).unwrap().send(&near).unwrap();
        // A child of another test may have a copy of it still.
        near.shutdown(std::net::Shutdown::Both).unwrap();
        drop(near);
        assert!(!monitor.wait().unwrap().success());
        assert!(!pins_left(ground));
        assert!(!ground.path("pod/monitor.sock").exists());
    });
}

#[test]
fn there_is_one_monitor_per_pod() {
    on_ground(async |ground| {
        let monitor = ground.monitor().await;
        let error = Monitor::spawn(&binary(), &ground.setup()).await.unwrap_err();
        assert!(chain(&error).contains("lock"), "{}", chain(&error));
        assert!(monitor.state().await.is_ok());
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_monitor_keeps_nothing_of_its_daemon_and_containers_nothing_of_it() {
    with_each_runtime(async |ground, runtime| {
        // A descriptor that is not close-on-exec, as a careless library may leave it.
        let leaked =
            rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        let monitor = ground.monitor().await;
        drop(leaked);
        let pid = monitor.welcome().monitor_pid;
        assert_eq!(rustix::process::getsid(Pid::from_raw(pid)).unwrap(), Pid::from_raw(pid).unwrap());
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap().split(|byte| *byte == 0).count(), 2);
        let mut seen = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            // The monitor may close one meanwhile.
            match fs::read_link(entry.unwrap().path()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                target => seen.push(target.unwrap().to_string_lossy().into_owned()),
            }
        }
        assert_eq!(seen.iter().filter(|target| *target == "/dev/null").count(), 2, "{seen:?}");
        let mut events = monitor.events();
        let plan = ground.run(&monitor, runtime, "exec cat /proc/self/status").await;
        exit_of(&mut events, plan.id()).await;
        // youki itself ignores SIGPIPE, and hands that down.
        let ignored = if runtime.path.ends_with("youki") { 1 << (libc::SIGPIPE - 1) } else { 0 };
        for (mask, expect) in [("SigBlk:", 0), ("SigIgn:", ignored)] {
            let lines = plan.lines();
            let value = lines.iter().find_map(|line| line.split_once(mask)).unwrap().1;
            assert_eq!(u64::from_str_radix(value.trim(), 16).unwrap(), expect, "{mask}");
        }
        let plan = ground.run(&monitor, runtime, "exec ls -1 /proc/self/fd").await;
        exit_of(&mut events, plan.id()).await;
        // The directory being listed is the fourth.
        assert_eq!(plan.lines(), ["stdout F 0", "stdout F 1", "stdout F 2", "stdout F 3"]);
        monitor.shutdown().await.unwrap();
    });
}

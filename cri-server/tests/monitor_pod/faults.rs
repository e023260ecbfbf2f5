//! Runtimes that are missing, fail or hang; monitors that die; daemons that vanish; rubbish on the socket.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri_server::host::monitor::{
    ContainerStatus, Event, FailureKind, Monitor, MonitorError, Runtime, Target,
};

use crate::ground::{
    Ground, chain, exec_exit_of, exit_of, install, next, on_ground, to_files, until, with_each_runtime,
    with_one_runtime,
};

fn script(ground: &Ground, text: &str) -> Runtime {
    let (source, path) = (ground.path("runtime.text"), ground.path("runtime.sh"));
    std::fs::write(&source, format!("#!/bin/sh\n{text}\n")).unwrap();
    install(&source, &path);
    Runtime { path, args: Vec::new(), root: ground.path("oci") }
}

fn kind_of(error: &MonitorError) -> FailureKind {
    let MonitorError::Refused { failure, .. } = error else { panic!("{error:?}") };
    failure.kind
}

#[test]
fn a_create_that_fails_leaves_nothing_and_says_why() {
    on_ground(async |ground| {
        let check = async |runtime: Runtime, kind, message: &str| {
            let monitor = ground.monitor().await;
            let plan = ground.plan(&runtime, "true");
            plan.write_bundle();
            let error = monitor.create(plan.spec.clone()).await.unwrap_err();
            assert_eq!(kind_of(&error), kind);
            assert!(chain(&error).contains(message), "{}", chain(&error));
            assert!(monitor.state().await.unwrap().containers.is_empty());
            assert_eq!(plan.log(), "");
            monitor.shutdown().await.unwrap();
            monitor.gone().await;
        };
        let missing = Runtime { path: ground.path("none"), args: Vec::new(), root: ground.path("oci") };
        check(missing, FailureKind::RuntimeMissing, "executing the OCI runtime").await;
        check(script(ground, "echo why not >&2; exit 1"), FailureKind::Runtime, "why not").await;
        check(script(ground, "exit 0"), FailureKind::Runtime, "without naming the process").await;
        check(script(ground, "kill -11 $$"), FailureKind::Runtime, "killed by signal 11").await;
        let logs = r#"test "$1" = --root && echo '{"level":"error","msg":"from the log"}' > "$4"; exit 1"#;
        check(script(ground, logs), FailureKind::Runtime, "from the log").await;
        let flood = "dd if=/dev/zero bs=64k count=64 >&2; dd if=/dev/zero bs=64k count=64; exit 1";
        check(script(ground, flood), FailureKind::Runtime, "").await;
        let stranger = r#"for a; do case $last in --pid-file) echo 1234567 > $a;; esac; last=$a; done"#;
        check(script(ground, stranger), FailureKind::Runtime, "is not the OCI runtime's child").await;
    });
}

#[test]
fn a_broken_bundle_is_explained_by_the_runtime() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut plan = ground.plan(runtime, "true");
        plan.set("/process/args", serde_json::json!(["/no/such/program"]));
        plan.write_bundle();
        let error = monitor.create(plan.spec.clone()).await.unwrap_err();
        assert_eq!(kind_of(&error), FailureKind::Runtime);
        assert!(chain(&error).contains("/no/such/program"), "{}", chain(&error));
        assert!(monitor.state().await.unwrap().containers.is_empty());
        assert!(std::fs::read_dir(ground.path("oci")).unwrap().next().is_none());
        plan.set("/process/args", serde_json::json!(["/bin/true"]));
        plan.create(&monitor).await;
        let error = monitor.create(plan.spec.clone()).await.unwrap_err();
        assert_eq!(kind_of(&error), FailureKind::AlreadyExists);
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_create_that_hangs_holds_up_nobody_and_is_ended_by_delete() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let hanging = script(ground, r#"case "$*" in *delete*) exit 0;; esac; sleep 1000 & sleep 1000"#);
        let plan = ground.plan(&hanging, "true");
        plan.write_bundle();
        let creating = tokio::spawn({
            let (monitor, spec) = (monitor.clone(), plan.spec.clone());
            async move { monitor.create(spec).await }
        });
        let other = ground.run(&monitor, runtime, "exit 6").await;
        assert_eq!(exit_of(&mut events, other.id()).await.exit_code, 6);
        assert!(!creating.is_finished());
        monitor.delete(plan.id()).await.unwrap();
        assert_eq!(kind_of(&creating.await.unwrap().unwrap_err()), FailureKind::Aborted);
        assert_eq!(monitor.state().await.unwrap().containers.len(), 1);
        monitor.shutdown().await.unwrap();
    });
}

/// An OCI runtime that is killed while its `exec` has let a process go and not named it yet: `made` runs `{made}`,
/// which tells when the process is there.
fn kill_between_letting_go_and_naming(made: &'static str) {
    with_one_runtime(async move |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let (up, list) = (ground.path("up"), ground.path("cgroup.procs"));
        let body = format!("echo $$ > {}; echo $$ > {}; exec sleep 1000", list.display(), up.display());
        let made =
            made.replace("{made}", &format!("setsid sh -c '{body}'")).replace("{up}", up.to_str().unwrap());
        let text = format!(
            r#"for a; do case $a in exec) go=1;; esac; case $last in --pid-file) file=$a;; esac; last=$a; done
               if [ "$go" ]; then {made}; fi; exec {} "$@""#,
            runtime.path.display()
        );
        let runtime = Runtime { path: script(ground, &text).path, ..runtime.clone() };
        let plan = ground.plan(&runtime, "sleep 1000");
        let processes = plan.spec.cgroup.directories[0].join("cgroup.procs");
        std::os::unix::fs::symlink(processes, list).unwrap();
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let exec =
            ground.exec(&plan, "x", &["/bin/true"], to_files(&ground.path("out"), &ground.path("err")));
        let starting = tokio::spawn({
            let monitor = monitor.clone();
            async move { monitor.exec(exec).await }
        });
        until("the process to be made", || up.metadata().is_ok_and(|up| up.len() > 0)).await;
        assert_eq!(plan.processes().len(), 2);
        monitor.signal(Target::Exec("x".into()), libc::SIGKILL).await.unwrap();
        assert_eq!(exec_exit_of(&mut events, "x").await, 137);
        until("the process to be gone", || plan.processes().len() == 1).await;
        assert_eq!(kind_of(&starting.await.unwrap().unwrap_err()), FailureKind::Aborted);
        assert!(monitor.state().await.unwrap().execs.is_empty());
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn an_exec_killed_while_it_starts_leaves_no_process_and_tells_its_end() {
    kill_between_letting_go_and_naming("{made} & wait");
}

/// As crun does it.
#[test]
fn nor_does_one_whose_process_is_handed_over_before_it_is_named() {
    kill_between_letting_go_and_naming(
        "({made} &); until [ -s {up} ]; do busybox usleep 1000; done; busybox usleep 20000; cat {up} > $file; \
         sleep 1000",
    );
}

#[test]
fn a_daemon_that_vanishes_in_the_middle_leaves_the_monitor_working() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let plan = ground.plan(runtime, "sleep 1000");
        plan.write_bundle();
        let asked = tokio::time::timeout(Duration::from_millis(1), monitor.create(plan.spec.clone())).await;
        assert!(asked.is_err());
        drop(monitor);
        let monitor = Monitor::attach(&ground.path("pod/monitor.sock")).await.unwrap();
        let mut events = monitor.events();
        // The create may not even have been read; asking again tells.
        match monitor.create(plan.spec.clone()).await {
            Ok(_) => {}
            Err(error) => assert_eq!(kind_of(&error), FailureKind::AlreadyExists),
        }
        monitor.delete(plan.id()).await.unwrap();
        let other = ground.run(&monitor, runtime, "exit 2").await;
        assert_eq!(exit_of(&mut events, other.id()).await.exit_code, 2);
        monitor.shutdown().await.unwrap();
    });
}

/// The OCI runtime, but a `start` waits for the file `go`, and fails where that says so.
fn held_start(ground: &Ground, runtime: &Runtime) -> Runtime {
    let (go, real) = (ground.path("go"), runtime.path.display());
    let (go, wait) = (go.display(), "/bin/busybox usleep 5000");
    let asked = ground.path("asked");
    let asked = asked.display();
    let text = format!(
        "for a; do if [ \"$a\" = start ]; then echo > {asked}; until [ -s {go} ]; do {wait}; done; \
         read word < {go}; [ $word = yes ] || exit 1; fi; done; exec {real} \"$@\""
    );
    Runtime { path: script(ground, &text).path, ..runtime.clone() }
}

#[test]
fn a_start_that_nobody_waits_for_is_told_when_it_is_done() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let plan = ground.plan(&held_start(ground, runtime), "sleep 1000");
        plan.create(&monitor).await;
        let mut monitor = monitor;
        for (word, started) in [("no", false), ("yes", true)] {
            tokio::select! {
                answer = monitor.start(plan.id()) => panic!("{answer:?}"),
                () = until("the start", || ground.path("asked").exists()) => {}
            }
            std::fs::remove_file(ground.path("asked")).unwrap();
            drop(monitor);
            monitor = Monitor::attach(&ground.path("pod/monitor.sock")).await.unwrap();
            let mut events = monitor.events();
            let status =
                async |monitor: &Monitor| monitor.state().await.unwrap().containers[0].status.clone();
            assert!(matches!(status(&monitor).await, ContainerStatus::Created { .. }));
            let busy = monitor.start(plan.id()).await.unwrap_err();
            assert_eq!(kind_of(&busy), FailureKind::FailedPrecondition);
            std::fs::write(ground.path("go.new"), format!("{word}\n")).unwrap();
            std::fs::rename(ground.path("go.new"), ground.path("go")).unwrap();
            if started {
                let told = next(&mut events).await;
                assert!(matches!(&told, Event::ContainerStarted { id, .. } if id == plan.id()), "{told:?}");
                assert!(matches!(status(&monitor).await, ContainerStatus::Running { .. }));
            } else {
                let failed = loop {
                    let failed = monitor.start(plan.id()).await.unwrap_err();
                    if kind_of(&failed) == FailureKind::Runtime {
                        break failed;
                    }
                };
                assert!(chain(&failed).contains("ended with 1"), "{}", chain(&failed));
                assert!(matches!(status(&monitor).await, ContainerStatus::Created { .. }));
                std::fs::remove_file(ground.path("go")).unwrap();
                std::fs::remove_file(ground.path("asked")).unwrap();
            }
        }
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn an_oci_runtime_dies_with_its_monitor() {
    on_ground(async |ground| {
        let monitor = ground.monitor().await;
        let pid = ground.path("pid");
        let hanging = script(ground, &format!("echo $$ > {}; exec sleep 1000", pid.display()));
        let plan = ground.plan(&hanging, "true");
        plan.write_bundle();
        let creating = tokio::spawn({
            let (monitor, spec) = (monitor.clone(), plan.spec.clone());
            async move { monitor.create(spec).await }
        });
        let read = || std::fs::read_to_string(&pid).unwrap_or_default().trim().to_owned();
        until("the OCI runtime", || !read().is_empty()).await;
        let process = PathBuf::from("/proc").join(read());
        assert!(process.exists());
        assert!(Monitor::kill(&ground.path("pod")).unwrap());
        assert!(creating.await.unwrap().is_err());
        // Whoever adopts orphans here may be slow to reap them.
        let dead = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"));
        until("its end", || std::fs::read_to_string(process.join("stat")).map_or(true, dead)).await;
    });
}

#[test]
fn the_death_of_a_monitor_is_told_at_once() {
    on_ground(async |ground| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        assert_eq!(Monitor::holder(&ground.path("pod")).unwrap(), Some(monitor.welcome().monitor_pid));
        assert!(Monitor::kill(&ground.path("pod")).unwrap());
        let told = next(&mut events).await;
        assert!(matches!(told, Event::Gone), "{told:?}");
        monitor.gone().await;
        assert!(matches!(monitor.state().await, Err(MonitorError::Lost { .. })));
        until("the lock", || Monitor::holder(&ground.path("pod")).unwrap().is_none()).await;
        assert!(!Monitor::kill(&ground.path("pod")).unwrap());
        let error = Monitor::attach(&ground.path("pod/monitor.sock")).await.unwrap_err();
        assert!(matches!(error, MonitorError::NoMonitor { .. }), "{error:?}");
    });
}

#[test]
fn a_stopped_monitor_does_not_hang_its_daemon() {
    on_ground(async |ground| {
        let monitor = ground.monitor().await;
        let pid = rustix::process::Pid::from_raw(monitor.welcome().monitor_pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let error = Monitor::attach(&ground.path("pod/monitor.sock")).await.unwrap_err();
        assert!(matches!(error, MonitorError::Deadline { .. }), "{error:?}");
        assert!(Monitor::kill(&ground.path("pod")).unwrap());
        monitor.gone().await;
    });
}

#[test]
fn rubbish_on_the_socket_is_dropped() {
    on_ground(async |ground| {
        let monitor = ground.monitor().await;
        let socket = ground.path("pod/monitor.sock");
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let call = r#"{"call":{"number":1,"call":"state"}}"#;
        let framed = |body: &str| [&(body.len() as u32).to_le_bytes()[..], &[0; 4], body.as_bytes()].concat();
        let inputs: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0xff; 1 << 16],
            framed("[]"),
            framed(call),
            framed(&"[".repeat(100_000)),
        ];
        for input in inputs.iter().cycle().take(100) {
            rubbish(&socket, input);
        }
        let idle: Vec<_> = (0..50).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        assert!(monitor.state().await.unwrap().containers.is_empty());
        drop(idle);
        let future = r#"{"call":{"number":7,"call":{"levitate":{"id":"x"}}}}"#;
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(&framed(r#"{"hello":{"version":9}}"#)).unwrap();
        stream.write_all(&framed(future)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("unsupported") {
            let mut chunk = [0; 512];
            let count = stream.read(&mut chunk).unwrap();
            assert!(count > 0);
            answer.extend_from_slice(&chunk[..count]);
        }
        monitor.shutdown().await.unwrap();
    });
}

fn rubbish(socket: &Path, input: &[u8]) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // The monitor may hang up before all is written.
    let _hung_up = stream.write_all(input);
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => assert!(rest.is_empty()),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn a_daemon_that_does_not_read_stalls_nothing() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut deaf = UnixStream::connect(ground.path("pod/monitor.sock")).unwrap();
        let framed = |body: &str| [&(body.len() as u32).to_le_bytes()[..], &[0; 4], body.as_bytes()].concat();
        deaf.write_all(&framed(r#"{"hello":{"version":1}}"#)).unwrap();
        deaf.set_nonblocking(true).unwrap();
        for number in 0..20_000 {
            let call = format!(r#"{{"call":{{"number":{number},"call":"state"}}}}"#);
            if deaf.write_all(&framed(&call)).is_err() {
                break;
            }
        }
        let plan = ground.run(&monitor, runtime, "exit 8").await;
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 8);
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_lost_connection_is_found_again_and_no_exit_is_missed() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let plan = ground.run(&monitor, runtime, "sleep 1; exit 9").await;
        // So many others that the monitor gives up the oldest: ours.
        let others: Vec<_> = (0..8).map(|_| greeted(&ground.path("pod/monitor.sock"))).collect();
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 9);
        drop(others);
        while let Err(error) = monitor.state().await {
            assert!(matches!(error, MonitorError::Lost { .. }), "{error:?}");
            // The call fails at once while there is no connection: let it be found.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        monitor.shutdown().await.unwrap();
        assert!(matches!(next(&mut events).await, Event::Gone));
    });
}

/// A connection that has said hello and heard the answer.
fn greeted(socket: &Path) -> UnixStream {
    let body = r#"{"hello":{"version":1}}"#;
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&[&(body.len() as u32).to_le_bytes()[..], &[0; 4], body.as_bytes()].concat()).unwrap();
    assert!(stream.read(&mut [0; 512]).unwrap() > 0);
    stream
}

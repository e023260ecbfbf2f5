//! The CRI log: splitting, streams, rotation, and independence of the daemon.

use std::path::Path;
use std::time::Duration;

use cri_server::host::monitor::{ContainerStatus, Monitor};

use crate::ground::{PATIENCE, exit_of, until, with_each_runtime, with_one_runtime};

#[test]
fn lines_are_split_and_streams_kept_apart() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let script = "echo out; echo err >&2; echo 0123456789abc; echo -n open";
        let mut plan = ground.plan(runtime, script);
        plan.spec.log_line_limit = 8;
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        exit_of(&mut events, plan.id()).await;
        let (stderr, stdout): (Vec<_>, Vec<_>) =
            plan.lines().into_iter().partition(|line| line.starts_with("stderr"));
        assert_eq!(stderr, ["stderr F err"]);
        assert_eq!(stdout, ["stdout F out", "stdout P 01234567", "stdout F 89abc", "stdout F open"]);
        let first = plan.log().split(' ').next().unwrap().to_owned();
        assert_eq!((first.len(), first.ends_with('Z')), (30, true), "{first}");
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_terminal_is_all_stdout() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut plan =
            ground.plan(runtime, "echo out; echo err >&2; ls /proc/self/fd/0 >/dev/null && echo -n tty");
        plan.spec.terminal = true;
        plan.set("/process/terminal", true.into());
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        exit_of(&mut events, plan.id()).await;
        until("the last line", || plan.lines() == ["stdout F out", "stdout F err", "stdout F tty"]).await;
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_background_child_does_not_delay_the_exit() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut plan = ground.plan(runtime, "{ sleep 0.05; echo late; sleep 1000; } & echo main");
        plan.share_pid(None);
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let at = std::time::Instant::now();
        exit_of(&mut events, plan.id()).await;
        assert!(at.elapsed() < PATIENCE);
        until("the child's line", || plan.lines() == ["stdout F main", "stdout F late"]).await;
        // The streams are given up some time after the exit; a reopen is refused then.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while monitor.reopen_log(plan.id()).await.is_ok() {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        monitor.delete(plan.id()).await.unwrap();
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_reopened_log_is_complete() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let script = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done";
        let plan = ground.run(&monitor, runtime, script).await;
        let log = plan.spec.bundle.join("log");
        let mut parts = Vec::new();
        for round in 0..10 {
            until("some lines", || {
                std::fs::metadata(&log).unwrap().len() > 0 || plan.spec.exit_file.exists()
            })
            .await;
            let old = plan.spec.bundle.join(format!("log.{round}"));
            std::fs::rename(&log, &old).unwrap();
            if monitor.reopen_log(plan.id()).await.is_err() {
                std::fs::rename(&old, &log).unwrap();
                break;
            }
            assert!(log.exists());
            parts.push((old.clone(), std::fs::read(&old).unwrap()));
        }
        exit_of(&mut events, plan.id()).await;
        let mut all = String::new();
        for (path, at_reopen) in parts {
            let now = std::fs::read(&path).unwrap();
            assert_eq!(now, at_reopen, "the old file got more lines");
            all += &String::from_utf8(now).unwrap();
        }
        all += &plan.log();
        let numbers: Vec<u32> =
            all.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..20000).collect::<Vec<_>>());
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn no_line_is_lost_without_a_daemon() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        // Ten thousand lines, in bursts of five hundred.
        let script =
            "r=0; while [ $r -lt 20 ]; do seq $((r*500+1)) $((r*500+500)); sleep 0.05; r=$((r+1)); done";
        let writer = ground.run(&monitor, runtime, script).await;
        let quitter = ground.run(&monitor, runtime, "sleep 0.2; exit 3").await;
        drop(monitor);
        until("both exits", || writer.spec.exit_file.exists() && quitter.spec.exit_file.exists()).await;
        let monitor = Monitor::attach(&ground.path("pod/monitor.sock")).await.unwrap();
        let mut state = monitor.state().await.unwrap();
        let exited = |status: &ContainerStatus| matches!(status, ContainerStatus::Exited { .. });
        // On disk a moment before it is told.
        while !state.containers.iter().all(|container| exited(&container.status)) {
            state = monitor.state().await.unwrap();
        }
        for container in &state.containers {
            let ContainerStatus::Exited { record, saved } = &container.status else {
                panic!("{container:?}")
            };
            let expect = if container.id == quitter.id() { 3 } else { 0 };
            assert_eq!((record.exit_code, saved), (expect, &true));
        }
        assert_eq!(state.containers.len(), 2);
        let lines = writer.lines();
        let expect: Vec<String> = (1..=10_000).map(|number| format!("stdout F {number}")).collect();
        assert!(lines == expect, "{} lines, last {:?}", lines.len(), lines.last());
        assert_eq!(state.containers.iter().map(|container| container.log_bytes_lost).sum::<u64>(), 0);
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn output_without_a_log_is_dropped() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut plan = ground.plan(runtime, "dd if=/dev/zero bs=64k count=100; exit 4");
        plan.spec.log_path = None;
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 4);
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_log_that_is_no_file_is_refused_and_not_followed() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut plan = ground.plan(runtime, "true");
        plan.spec.log_path = Some(ground.path("link"));
        std::os::unix::fs::symlink(ground.path("victim"), ground.path("link")).unwrap();
        plan.write_bundle();
        let error = monitor.create(plan.spec.clone()).await.unwrap_err();
        assert!(crate::ground::chain(&error).contains("opening the log file"), "{error:?}");
        assert!(!Path::new(&ground.path("victim")).exists());
        assert!(monitor.state().await.unwrap().containers.is_empty());
        monitor.shutdown().await.unwrap();
    });
}

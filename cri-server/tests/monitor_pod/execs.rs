//! Exec: streams, exit codes, and refusals that cannot be taken for exit codes.

use std::io::Read;

use cri_server::host::monitor::{ExecEnd, ExecStdio, FailureKind, Monitor, MonitorError, Target};

use crate::ground::{
    chain, exec_exit_of, exit_of, next, to_files, until, with_each_runtime, with_one_runtime,
};

#[test]
fn execs_have_their_own_streams_and_exit_codes() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let (out, err) = (ground.path("out"), ground.path("err"));
        for code in [0, 1, 126, 255] {
            let script = format!("echo o{code}; echo e >&2; exit {code}");
            let exec =
                ground.exec(&plan, &format!("x{code}"), &["/bin/sh", "-c", &script], to_files(&out, &err));
            monitor.exec(exec).await.unwrap();
            assert_eq!(exec_exit_of(&mut events, &format!("x{code}")).await, code);
            assert_eq!(std::fs::read_to_string(&out).unwrap(), format!("o{code}\n"));
            assert_eq!(std::fs::read_to_string(&err).unwrap(), "e\n");
        }
        let exec = ground.exec(&plan, "slow", &["/bin/sleep", "1000"], to_files(&out, &err));
        monitor.exec(exec).await.unwrap();
        assert_eq!(monitor.state().await.unwrap().execs.len(), 1);
        monitor.signal(Target::Exec("slow".into()), libc::SIGKILL).await.unwrap();
        assert_eq!(exec_exit_of(&mut events, "slow").await, 137);
        monitor.signal(Target::Exec("slow".into()), libc::SIGKILL).await.unwrap();
        assert!(plan.lines().is_empty());
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_killed_exec_takes_its_session_along() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let script = "sleep 1001 & busybox setsid sleep 1002 & (sleep 1003; true) & (sleep 1005 &); echo up; \
                      sleep 1004; true";
        let (out, err) = (ground.path("out"), ground.path("err"));
        let exec = ground.exec(&plan, "x", &["/bin/sh", "-c", script], to_files(&out, &err));
        monitor.exec(exec).await.unwrap();
        until("the command to be up", || plan.processes().len() >= 8).await;
        monitor.signal(Target::Exec("x".into()), libc::SIGKILL).await.unwrap();
        assert_eq!(exec_exit_of(&mut events, "x").await, 137);
        until("all of the command to be gone", || plan.processes().len() == 1).await;
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn an_end_that_nobody_heard_is_remembered() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let (out, err) = (ground.path("out"), ground.path("err"));
        let script = "while ! test -e /tmp/go; do sleep 0.01; done; exit 7";
        let exec = ground.exec(&plan, "x", &["/bin/sh", "-c", script], to_files(&out, &err));
        let process = monitor.exec(exec).await.unwrap().pid;
        drop(monitor);
        std::fs::write(format!("/proc/{process}/root/tmp/go"), "").unwrap();
        until("the command to end", || !std::path::Path::new(&format!("/proc/{process}")).exists()).await;
        let monitor = Monitor::attach(&ground.path("pod").join("monitor.sock")).await.unwrap();
        let state = monitor.state().await.unwrap();
        assert!(state.execs.is_empty());
        assert_eq!(state.ended_execs, [ExecEnd { exec_id: "x".into(), exit_code: 7 }]);
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn what_cannot_be_executed_is_an_error_not_an_exit_code() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let (out, err) = (ground.path("out"), ground.path("err"));
        let exec = ground.exec(&plan, "x", &["/no/such"], to_files(&out, &err));
        let error = monitor.exec(exec).await.unwrap_err();
        let MonitorError::Refused { failure, .. } = &error else { panic!("{error:?}") };
        assert_eq!(failure.kind, FailureKind::Runtime, "{}", chain(&error));
        assert!(
            failure.message.contains("/no/such") && !failure.message.contains("level"),
            "{}",
            chain(&error)
        );
        assert!(monitor.state().await.unwrap().execs.is_empty());
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn only_running_containers_take_execs() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let plan = ground.plan(runtime, "true");
        plan.create(&monitor).await;
        let check = async |expect| {
            let files = to_files(&ground.path("out"), &ground.path("err"));
            let error = monitor.exec(ground.exec(&plan, "x", &["/bin/true"], files)).await.unwrap_err();
            assert!(
                matches!(&error, MonitorError::Refused { failure, .. } if failure.kind == expect),
                "{error:?}"
            );
        };
        check(FailureKind::FailedPrecondition).await;
        monitor.start(plan.id()).await.unwrap();
        exit_of(&mut events, plan.id()).await;
        check(FailureKind::FailedPrecondition).await;
        monitor.delete(plan.id()).await.unwrap();
        check(FailureKind::NotFound).await;
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn many_execs_at_once_all_report() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let mut left = std::collections::HashSet::new();
        let mut running = tokio::task::JoinSet::new();
        for code in 0..10 {
            let files = to_files(&ground.path(&format!("o{code}")), &ground.path(&format!("e{code}")));
            let script = format!("exit {code}");
            let exec = ground.exec(&plan, &format!("x{code}"), &["/bin/sh", "-c", &script], files);
            let monitor = monitor.clone();
            running.spawn(async move { monitor.exec(exec).await.unwrap().pid });
            left.insert((format!("x{code}"), code));
        }
        while let Some(pid) = running.join_next().await {
            assert!(pid.unwrap() > 1);
        }
        while !left.is_empty() {
            if let cri_server::host::monitor::Event::ExecExited { exec_id, exit_code } =
                next(&mut events).await
            {
                assert!(left.remove(&(exec_id, exit_code)));
            }
        }
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn an_exec_with_a_terminal_hands_its_master_over() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let exec = ground.exec(&plan, "x", &["/bin/sh", "-c", "echo hi; exit 9"], ExecStdio::Terminal);
        let execed = monitor.exec(exec).await.unwrap();
        let mut text = Vec::new();
        let mut master = std::fs::File::from(execed.terminal.unwrap());
        // The end of a terminal is an error.
        let _ended = master.read_to_end(&mut text);
        assert_eq!(text, b"hi\r\n");
        assert_eq!(exec_exit_of(&mut events, "x").await, 9);
        monitor.shutdown().await.unwrap();
    });
}

//! Exit codes, signals, records, OOM verdicts.

use cri_server::host::monitor::{ContainerStatus, Target};
use serde_json::json;

use crate::ground::{exec_exit_of, exit_of, to_files, until, with_each_runtime, with_one_runtime};

#[test]
fn exit_codes_are_reported_after_they_are_on_disk() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        for (script, code, signal) in
            [("exit 0", 0, None), ("exit 3", 3, None), ("kill -9 $$; exit 1", 1, None)]
        {
            let plan = ground.run(&monitor, runtime, script).await;
            let record = exit_of(&mut events, plan.id()).await;
            assert_eq!((record.exit_code, record.signal), (code, signal), "{script}");
            assert_eq!(plan.record(), record);
            assert_eq!(record.identity, json!({"name": "c"}));
            assert!(record.created_at_ns <= record.started_at_ns.unwrap());
            assert!(record.started_at_ns.unwrap() <= record.finished_at_ns);
            assert!(!record.boot_id.is_empty() && !record.oom_killed);
            monitor.delete(plan.id()).await.unwrap();
            monitor.delete(plan.id()).await.unwrap();
        }
        assert!(monitor.state().await.unwrap().containers.is_empty());
        assert!(std::fs::read_dir(ground.path("oci")).unwrap().next().is_none());
        monitor.shutdown().await.unwrap();
        monitor.gone().await;
    });
}

#[test]
fn signals_stop_and_kill() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done";
        let plan = ground.run(&monitor, runtime, script).await;
        until("the trap", || plan.lines() == ["stdout F up"]).await;
        monitor.signal(Target::Container(plan.id().into()), libc::SIGTERM).await.unwrap();
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 7);
        assert_eq!(plan.lines(), ["stdout F up", "stdout F bye"]);
        monitor.signal(Target::Container(plan.id().into()), libc::SIGKILL).await.unwrap();

        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        monitor.signal(Target::Container(plan.id().into()), libc::SIGKILL).await.unwrap();
        let record = exit_of(&mut events, plan.id()).await;
        assert_eq!((record.exit_code, record.signal, record.oom_killed), (137, Some(9), false));
        assert!(monitor.signal(Target::Container("other".into()), libc::SIGTERM).await.is_err());
        assert!(monitor.signal(Target::Container(plan.id().into()), 65).await.is_err());

        let plan = ground.run(&monitor, runtime, "exec sleep 1000").await;
        monitor.signal(Target::Container(plan.id().into()), 0).await.unwrap_err();
        let (out, err) = (ground.path("out"), ground.path("err"));
        let command = ["/bin/sh", "-c", "echo up; exec sleep 1000"];
        monitor.exec(ground.exec(&plan, "rt", &command, to_files(&out, &err))).await.unwrap();
        // runc answers before the exec, and swallows this signal until then.
        until("the command", || std::fs::read(&out).unwrap() == b"up\n").await;
        monitor.signal(Target::Exec("rt".into()), 37).await.unwrap();
        assert_eq!(exec_exit_of(&mut events, "rt").await, 128 + 37);
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn delete_kills_what_runs_and_what_was_never_started() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let running = ground.run(&monitor, runtime, "sleep 1000").await;
        let created = ground.plan(runtime, "true");
        created.create(&monitor).await;
        for plan in [&running, &created] {
            monitor.delete(plan.id()).await.unwrap();
            assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 137);
            assert_eq!(plan.record().started_at_ns.is_some(), plan.id() == running.id());
        }
        assert!(monitor.state().await.unwrap().containers.is_empty());
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn the_memory_limit_shows_as_oom() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let script = "dd if=/dev/zero of=/dev/null bs=64M count=1";
        let mut plan = ground.plan(runtime, &format!("exec {script}"));
        plan.set("/linux/resources/memory", json!({"limit": 15 << 20, "swap": 15 << 20}));
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let record = exit_of(&mut events, plan.id()).await;
        assert_eq!((record.exit_code, record.oom_killed), (137, true), "{record:?} {}", plan.log());

        let mut plan = ground.plan(runtime, &format!("{script}; exit 0"));
        plan.set("/linux/resources/memory", json!({"limit": 15 << 20, "swap": 15 << 20}));
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let record = exit_of(&mut events, plan.id()).await;
        assert_eq!((record.exit_code, record.oom_killed, record.oom_kills > 0), (0, false, true));
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn where_the_pid_namespace_is_shared_the_rest_of_the_cgroup_dies_too() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut plan = ground.plan(runtime, "sleep 1000 & echo $!");
        plan.share_pid(None);
        plan.spec.kill_cgroup = true;
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 0);
        let child: i32 = plan.lines()[0].rsplit(' ').next().unwrap().parse().unwrap();
        let child = rustix::process::Pid::from_raw(child).unwrap();
        until("the child's end", || rustix::process::test_kill_process(child).is_err()).await;
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_record_that_cannot_be_written_does_not_hide_the_exit() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut plan = ground.plan(runtime, "exit 5");
        plan.spec.exit_file = ground.path("missing/exit.json");
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 5);
        let state = monitor.state().await.unwrap();
        assert!(matches!(state.containers[0].status, ContainerStatus::Exited { saved: false, .. }));
        monitor.shutdown().await.unwrap();
    });
}

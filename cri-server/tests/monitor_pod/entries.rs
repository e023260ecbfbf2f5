//! Commands that the monitor starts itself: like the main process, which the OCI runtime made, in everything.

use std::path::Path;

use cri_server::host::monitor::{Monitor, MonitorError, Runtime};
use cri_server::spec::Machine;
use serde_json::{Value, json};

use crate::ground::{Ground, Plan, exec_exit_of, to_files, until, with_each_runtime_entered};

/// Prints what a process is: credentials, filter, namespaces, cgroups, priority for the OOM killer, descriptors.
const PORTRAIT: &str = "busybox pwd -P; cd /proc/self; while read -r key rest; do case $key in \
     Uid:|Gid:|Groups:|Cap*|NoNewPrivs:|Seccomp:|Seccomp_filters:|Umask:|SigIgn:|SigBlk:) echo $key $rest;; esac; \
     done < status; cat cgroup oom_score_adj; \
     for kind in mnt pid net ipc uts user cgroup; do busybox readlink ns/$kind; done; \
     echo fds; for fd in 0 1 2 3 4 5 6 7 8 9 11 12; do test -e fd/$fd && echo $fd; done; \
     echo $HOME; echo $PATH; umask";

/// No host names, and no signals whose two lowest bits are 01.
fn filter(runtime: &Runtime) -> Value {
    let (mask, value) = (3, 1);
    let (value, value_two) = if runtime.path.ends_with("youki") { (value, mask) } else { (mask, value) };
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": match Machine::HERE {
            Machine::X86_64 => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
            Machine::Aarch64 => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        },
        "syscalls": [
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
             "args": [{"index": 1, "value": value, "valueTwo": value_two, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    })
}

/// Runs a command to its end; its output.
async fn run(ground: &Ground, monitor: &Monitor, plan: &Plan, script: &str) -> (i32, String) {
    let mut events = monitor.events();
    let (out, err) = (ground.path("out"), ground.path("err"));
    let exec = ground.exec(plan, "x", &["/bin/sh", "-c", script], to_files(&out, &err));
    monitor.exec(exec).await.unwrap();
    let code = exec_exit_of(&mut events, "x").await;
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    (code, read(&out) + &read(&err))
}

/// A container whose main process draws its portrait and stays.
async fn portrayed(
    ground: &Ground,
    monitor: &Monitor,
    runtime: &Runtime,
    change: impl Fn(&mut Plan),
) -> (Plan, String) {
    let mut plan = ground.plan(runtime, &format!("{PORTRAIT}; echo end; exec sleep 1000"));
    change(&mut plan);
    plan.create(monitor).await;
    monitor.start(plan.id()).await.unwrap();
    until("the main process's portrait", || plan.lines().iter().any(|line| line == "stdout F end")).await;
    let lines = plan.lines();
    let said =
        lines.iter().filter_map(|line| line.strip_prefix("stdout F ")).take_while(|line| *line != "end");
    let text = said.map(|line| format!("{line}\n")).collect();
    (plan, text)
}

#[test]
fn a_command_is_what_the_main_process_is() {
    with_each_runtime_entered(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let check = async |what: &str, change: &dyn Fn(&mut Plan)| {
            let (plan, expect) = portrayed(ground, &monitor, runtime, change).await;
            let (code, said) = run(ground, &monitor, &plan, PORTRAIT).await;
            // youki leaves SIGPIPE ignored, as Rust's library has it.
            let expect = match runtime.path.ends_with("youki") {
                true => expect.replace("SigIgn: 0000000000001004", "SigIgn: 0000000000000004"),
                false => expect,
            };
            assert_eq!((code, said), (0, expect), "{what}");
            monitor.delete(plan.id()).await.unwrap();
        };
        check("root", &|_| {}).await;
        check("a user", &|plan| {
            plan.set(
                "/process/user",
                json!({"uid": 1000, "gid": 100, "additionalGids": [100, 7], "umask": 0o027}),
            );
            plan.set("/process/env", json!(["PATH=/bin", "HOME=/home"]));
            plan.set("/process/cwd", json!("/tmp"));
            plan.set("/process/oomScoreAdj", json!(500));
        })
        .await;
        check("no new privileges and a filter", &|plan| {
            plan.set("/process/noNewPrivileges", json!(true));
            plan.set("/linux/seccomp", filter(runtime));
        })
        .await;
        check("a filter and no capability", &|plan| {
            plan.set("/process/user", json!({"uid": 1000, "gid": 1000}));
            plan.set("/process/capabilities", json!({}));
            plan.set("/linux/seccomp", filter(runtime));
        })
        .await;
        check("ambient capabilities", &|plan| {
            plan.set("/process/user", json!({"uid": 1000, "gid": 1000}));
            for set in ["inheritable", "ambient"] {
                plan.set(&format!("/process/capabilities/{set}"), json!(["CAP_KILL"]));
            }
        })
        .await;
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_command_obeys_the_filter() {
    with_each_runtime_entered(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut plan = ground.plan(runtime, "sleep 1000");
        plan.set("/linux/seccomp", filter(runtime));
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let (code, said) = run(ground, &monitor, &plan, "hostname other").await;
        assert!(code != 0 && said.contains("not implemented"), "{code} {said:?}");
        let (code, said) = run(ground, &monitor, &plan, "kill -1 $$").await;
        assert!(code != 0 && said.contains("not supported"), "{code} {said:?}");
        let (code, said) = run(ground, &monitor, &plan, "sleep 1000 & kill -15 $!").await;
        assert_eq!((code, said), (0, String::new()));
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn what_a_container_has_changed_misleads_no_command() {
    with_each_runtime_entered(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let refusal =
            async |expect: &str, terminal: bool, change: &dyn Fn(&mut cri_server::host::monitor::Exec)| {
                let stdio = match terminal {
                    true => cri_server::host::monitor::ExecStdio::Terminal,
                    false => to_files(&ground.path("out"), &ground.path("err")),
                };
                let mut exec = ground.exec(&plan, "refused", &["/bin/true"], stdio);
                change(&mut exec);
                let error = monitor.exec(exec).await.unwrap_err();
                let MonitorError::Refused { failure, .. } = &error else { panic!("{error:?}") };
                assert!(failure.message.contains(expect), "{}", failure.message);
            };
        let rewrite = |exec: &mut cri_server::host::monitor::Exec, pointer: &str, value: Value| {
            let mut object: Value = serde_json::from_slice(&std::fs::read(&exec.process).unwrap()).unwrap();
            object[pointer] = value;
            std::fs::write(&exec.process, object.to_string()).unwrap();
        };
        refusal("/not/there", false, &|exec| rewrite(exec, "cwd", json!("/not/there"))).await;
        refusal("\"nothing\": executable file not found in $PATH", false, &|exec| {
            rewrite(exec, "args", json!(["nothing"]));
        })
        .await;
        refusal("\"/proc/version\": permission denied", false, &|exec| {
            rewrite(exec, "args", json!(["/proc/version"]));
        })
        .await;
        refusal("CAP_WHAT", false, &|exec| {
            rewrite(exec, "capabilities", json!({"bounding": ["CAP_WHAT"]}));
        })
        .await;
        for (made, expect) in [
            ("busybox mkfifo /dev/ptmx", "is not the device 5:2"),
            ("busybox mknod /dev/ptmx c 1 3", "is not the device 5:2"),
            ("busybox ln -s /proc/self/fd/0 /dev/ptmx", "/dev/ptmx"),
            ("busybox ln -s ptmx /dev/ptmx", "/dev/ptmx"),
        ] {
            let (code, said) =
                run(ground, &monitor, &plan, &format!("busybox rm -f /dev/ptmx; {made}")).await;
            assert_eq!((code, said), (0, String::new()), "{made}");
            refusal(expect, true, &|_| {}).await;
        }
        assert!(monitor.state().await.unwrap().execs.is_empty());
        assert_eq!(plan.processes().len(), 1, "something stayed");
        monitor.shutdown().await.unwrap();
    });
}

//! Commands that the monitor starts itself: like the main process, which the OCI runtime made, in everything.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cri_server::host::monitor::{Exec, ExecStdio, Monitor, MonitorError, Runtime};
use cri_server::spec::Machine;
use serde_json::{Value, json};

use crate::ground::{Ground, Plan, exec_exit_of, to_files, until, with_each_runtime_entered};

/// The node's id of a user namespace's root.
const FIRST: u32 = 300_000;

/// Prints what a process is: credentials, filter, namespaces, cgroups, priority for the OOM killer, descriptors.
const PORTRAIT: &str = "busybox pwd -P; cd /proc/self; while read -r key rest; do case $key in \
     Uid:|Gid:|Groups:|Cap*|NoNewPrivs:|Seccomp:|Seccomp_filters:|Umask:|SigIgn:|SigBlk:) echo $key $rest;; esac; \
     done < status; cat cgroup oom_score_adj; \
     for kind in mnt pid net ipc uts user cgroup; do busybox readlink ns/$kind; done; \
     echo fds; for fd in fd/*; do test -e $fd && echo $fd; done; \
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

/// Users of a namespace have to get to the root file system.
fn open_to_all(ground: &Ground) {
    std::fs::set_permissions(ground.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
}

/// Gives the container a user namespace.
fn map_users(plan: &mut Plan) {
    let kinds = ["pid", "mount", "ipc", "uts", "user"].map(|kind| json!({"type": kind}));
    plan.set("/linux/namespaces", json!(kinds));
    for ids in ["uidMappings", "gidMappings"] {
        plan.set(&format!("/linux/{ids}"), json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]));
    }
    plan.spec.stdio_owner = Some(FIRST);
}

/// Runs a command to its end; its output.
async fn run(ground: &Ground, monitor: &Monitor, plan: &Plan, script: &str) -> (i32, String) {
    execute(ground, monitor, plan, &["/bin/sh", "-c", script]).await
}

async fn execute(ground: &Ground, monitor: &Monitor, plan: &Plan, command: &[&str]) -> (i32, String) {
    let mut events = monitor.events();
    let (out, err) = (ground.path("out"), ground.path("err"));
    let exec = ground.exec(plan, "x", command, to_files(&out, &err));
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
        open_to_all(ground);
        check("a user namespace", &|plan| map_users(plan)).await;
        check("a user of a user namespace", &|plan| {
            map_users(plan);
            plan.set("/process/user", json!({"uid": 1000, "gid": 100, "additionalGids": [7]}));
            plan.set("/linux/seccomp", filter(runtime));
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
fn a_terminal_belongs_to_the_commands_user() {
    with_each_runtime_entered(async |ground, runtime| {
        let monitor = ground.monitor().await;
        open_to_all(ground);
        for change in [|_: &mut Plan| {}, map_users] {
            let mut plan = ground.plan(runtime, "sleep 1000");
            change(&mut plan);
            plan.create(&monitor).await;
            monitor.start(plan.id()).await.unwrap();
            let mut events = monitor.events();
            let script = "busybox stat -c %u $(busybox tty); busybox stty size; echo here > /dev/tty; exit 9";
            let exec = ground.exec(&plan, "x", &["/bin/sh", "-c", script], ExecStdio::Terminal);
            rewrite(&exec, "user", json!({"uid": 1000, "gid": 1000}));
            rewrite(&exec, "consoleSize", json!({"height": 25, "width": 81}));
            let mut master = std::fs::File::from(monitor.exec(exec).await.unwrap().terminal.unwrap());
            let mut text = String::new();
            // The end of a terminal is an error.
            let _ended = master.read_to_string(&mut text);
            assert_eq!(text, "1000\r\n25 81\r\nhere\r\n");
            assert_eq!(exec_exit_of(&mut events, "x").await, 9);
            monitor.delete(plan.id()).await.unwrap();
        }
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_user_may_open_the_commands_pipes() {
    with_each_runtime_entered(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let mut events = monitor.events();
        let (reader, writer) = std::io::pipe().unwrap();
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let stdio = ExecStdio::Fds([null(), writer.into(), null()]);
        let exec = ground.exec(&plan, "x", &["/bin/sh", "-c", "echo again > /proc/self/fd/1"], stdio);
        rewrite(&exec, "user", json!({"uid": 1000, "gid": 1000}));
        monitor.exec(exec).await.unwrap();
        assert_eq!(exec_exit_of(&mut events, "x").await, 0);
        let mut text = String::new();
        std::io::BufReader::new(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "again\n");
        monitor.shutdown().await.unwrap();
    });
}

/// What a command does before its exec, it does before its filter where that can be.
#[test]
fn a_filter_needs_to_allow_nothing_but_the_exec() {
    with_each_runtime_entered(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut plan = ground.plan(runtime, "sleep 1000");
        plan.set("/process/noNewPrivileges", json!(true));
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let names = ["close_range", "getcwd", "chdir", "umask", "sendto", "setresuid", "setgroups", "capset"];
        plan.set(
            "/linux/seccomp",
            json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": names, "action": "SCMP_ACT_KILL_PROCESS"}],
            }),
        );
        plan.write_bundle();
        let said = execute(ground, &monitor, &plan, &["/bin/echo", "alive"]).await;
        assert_eq!(said, (0, "alive\n".to_owned()));
        // The filter is there.
        let (code, _) = run(ground, &monitor, &plan, "umask").await;
        assert_eq!(code, 128 + libc::SIGSYS);
        monitor.shutdown().await.unwrap();
    });
}

fn rewrite(exec: &Exec, key: &str, value: Value) {
    let mut object: Value = serde_json::from_slice(&std::fs::read(&exec.process).unwrap()).unwrap();
    object[key] = value;
    std::fs::write(&exec.process, object.to_string()).unwrap();
}

/// How a command is refused that `change` has changed.
async fn refusal(
    ground: &Ground,
    monitor: &Monitor,
    plan: &Plan,
    stdio: ExecStdio,
    change: &dyn Fn(&Exec),
) -> String {
    let exec = ground.exec(plan, "refused", &["/bin/true"], stdio);
    change(&exec);
    let error = monitor.exec(exec).await.unwrap_err();
    let MonitorError::Refused { failure, .. } = &error else { panic!("{error:?}") };
    failure.message.clone()
}

#[test]
fn what_a_container_has_changed_misleads_no_command() {
    with_each_runtime_entered(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let check = async |expect: &str, key: &str, value: Value| {
            let files = to_files(&ground.path("out"), &ground.path("err"));
            let change = |exec: &Exec| rewrite(exec, key, value.clone());
            let said = refusal(ground, &monitor, &plan, files, &change).await;
            assert!(said.contains(expect), "{key} {value}: {said}");
        };
        check("/not/there", "cwd", json!("/not/there")).await;
        check("\"nothing\": executable file not found in $PATH", "args", json!(["nothing"])).await;
        check("\"/proc/version\": permission denied", "args", json!(["/proc/version"])).await;
        check("CAP_WHAT", "capabilities", json!({"bounding": ["CAP_WHAT"]})).await;
        let made = "echo '#!/no/such' > /tmp/script; busybox chmod 755 /tmp/script; busybox mkfifo /tmp/fifo; \
                    busybox chmod 755 /tmp/fifo; for fd in 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
                    busybox ln -s /proc/self/fd/$fd /tmp/directory$fd; \
                    busybox ln -s /proc/self/fd/$fd/1/exe /tmp/program$fd; done";
        assert_eq!(run(ground, &monitor, &plan, made).await, (0, String::new()));
        check("\"/tmp/script\": no such file or directory", "args", json!(["/tmp/script"])).await;
        check("permission denied", "args", json!(["/tmp/fifo"])).await;
        for fd in 3..=20 {
            check("working directory", "cwd", json!(format!("/tmp/directory{fd}"))).await;
            check("exec: ", "args", json!([format!("/tmp/program{fd}")])).await;
        }
        for (made, expect) in [
            ("busybox mkfifo /dev/ptmx", "is not the device 5:2"),
            ("busybox mknod /dev/ptmx c 1 3", "is not the device 5:2"),
            ("busybox ln -s /proc/self/fd/0 /dev/ptmx", "/dev/ptmx"),
            ("busybox ln -s ptmx /dev/ptmx", "/dev/ptmx"),
        ] {
            let (code, said) =
                run(ground, &monitor, &plan, &format!("busybox rm -f /dev/ptmx; {made}")).await;
            assert_eq!((code, said), (0, String::new()), "{made}");
            let said = refusal(ground, &monitor, &plan, ExecStdio::Terminal, &|_| {}).await;
            assert!(said.contains(expect), "{made}: {said}");
        }
        assert!(monitor.state().await.unwrap().execs.is_empty());
        until("nothing to be left", || plan.processes().len() == 1).await;
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_command_that_would_wait_in_a_frozen_container_is_refused() {
    with_each_runtime_entered(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let cgroups = &plan.spec.entry.as_ref().unwrap().cgroups;
        let switches = [("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0")];
        let files = cgroups
            .iter()
            .flat_map(|directory| switches.map(|(file, freeze, thaw)| (directory.join(file), freeze, thaw)));
        let (file, freeze, thaw) = files.into_iter().find(|(file, ..)| file.exists()).expect("a freezer");
        std::fs::write(&file, freeze).unwrap();
        let stdio = to_files(&ground.path("out"), &ground.path("err"));
        let said = refusal(ground, &monitor, &plan, stdio, &|_| {}).await;
        std::fs::write(&file, thaw).unwrap();
        assert!(said.contains("cannot exec in a paused container"), "{said}");
        assert_eq!(run(ground, &monitor, &plan, "echo here").await, (0, "here\n".into()));
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_command_does_not_follow_into_users_that_the_main_process_has_made() {
    with_each_runtime_entered(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let script = "exec busybox unshare -U -r /bin/sh -c 'echo in; exec busybox sleep 1000'";
        let mut plan = ground.plan(runtime, script);
        plan.set("/process/user", json!({"uid": 1000, "gid": 1000}));
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        until("users of its own", || plan.lines().iter().any(|line| line == "stdout F in")).await;
        let mine = std::fs::read_link("/proc/self/ns/user").unwrap();
        let (code, said) = run(ground, &monitor, &plan, "busybox readlink /proc/self/ns/user").await;
        assert_eq!((code, said.trim()), (0, mine.to_str().unwrap()));
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_command_may_use_all_processors_however_few_the_monitor_was_given() {
    with_each_runtime_entered(async |ground, runtime| {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap();
        let mut one = rustix::thread::CpuSet::new();
        one.set(first);
        rustix::thread::sched_setaffinity(None, &one).unwrap();
        let monitor = ground.monitor().await;
        rustix::thread::sched_setaffinity(None, &all).unwrap();
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let (code, said) = run(ground, &monitor, &plan, "busybox nproc").await;
        assert_eq!((code, said.trim()), (0, all.count().to_string().as_str()));
        monitor.shutdown().await.unwrap();
    });
}

//! Exec, attach and port-forward by crictl, as people use them; and what is left when a client is killed.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::container;
use e2e::daemon::Setup;
use e2e::image::set::BUSYBOX;
use e2e::processes::pss_kib;
use e2e::streams::{Attached, connect, crictl, finish, piped, reverse};
use e2e::terminal::Terminal;
use e2e::{pattern, wait};
use proto::cri as api;
use rustix::process::Signal;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(60);
/// Both protocols that crictl speaks.
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];
/// Bytes of the large copy. A multiple of a MiB.
const LARGE: u64 = 1 << 30;
/// Growth of the daemon that a large copy may cost, KiB.
const GROWTH: u64 = 24 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn commands_have_input_output_and_exit_codes() -> Result<()> {
    let Some(case) = Case::open("commands_have_input_output_and_exit_codes", Setup::default()).await? else {
        return Ok(());
    };
    let (pod_id, id) = case.sleeper(&case.cri.pod("exec")).await?;
    for transport in TRANSPORTS {
        let exec = |line: &str| crictl(&case, &format!("exec -r {transport} {line}"));
        let (code, stdout, stderr) =
            piped(&exec(&format!("-i {id} sh -c"))?.arg("wc -c; echo end >&2; exit 7"), &[b'x'; 100_000])?;
        ensure!(code != 0 && stdout == "100000\n", "{transport}: {code} {stdout:?} {stderr:?}");
        ensure!(stderr.contains("end\n") && stderr.contains("exit code 7"), "{transport}: {stderr:?}");
        let printed = exec(&format!("{id} echo hello"))?.ok()?;
        ensure!(printed == "hello\n", "{transport}: {printed:?}");
        // The child keeps the output open.
        let printed = exec(&format!("{id} sh -c"))?.arg("sleep 100 & echo shown").deadline(PATIENCE).ok()?;
        ensure!(printed == "shown\n", "{transport}: {printed:?}");
        let missing = exec(&format!("{id} /no/such"))?.run()?;
        ensure!(!missing.status.success() && missing.stderr.contains("/no/such"), "{missing:?}");
    }
    refusals(&case, &pod_id, &id).await?;
    large_copy(&case, &id)?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

async fn refusals(case: &Case, pod_id: &str, id: &str) -> Result<()> {
    let mut runtime = case.cri.runtime.clone();
    let good = api::ExecRequest {
        container_id: id.into(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    let mut check = async |code: Code, request: api::ExecRequest| {
        let status = runtime.exec(request.clone()).await.err();
        ensure!(status.as_ref().map(|s| s.code()) == Some(code), "{request:?}: {status:?}");
        Ok(())
    };
    let stopped =
        case.cri.launch(pod_id, &container("stopped", BUSYBOX, &["true"]), &case.cri.pod("exec")).await?;
    case.cri.stop(&stopped, 5).await?;
    check(Code::FailedPrecondition, api::ExecRequest { container_id: stopped, ..good.clone() }).await?;
    check(Code::InvalidArgument, api::ExecRequest { cmd: vec![], ..good.clone() }).await?;
    check(Code::InvalidArgument, api::ExecRequest { stdout: false, ..good.clone() }).await?;
    check(Code::InvalidArgument, api::ExecRequest { tty: true, stderr: true, ..good.clone() }).await?;
    check(Code::NotFound, api::ExecRequest { container_id: "0123".into(), ..good.clone() }).await?;
    let mut runtime = case.cri.runtime.clone();
    let attach =
        api::AttachRequest { container_id: id.into(), tty: true, stdout: true, ..Default::default() };
    let code = runtime.attach(attach).await.err().map(|status| status.code());
    ensure!(code == Some(Code::InvalidArgument), "a terminal where there is none: {code:?}");
    Ok(())
}

/// As much as a core dump, through the command and back: nothing changes on the way, and the daemon does not grow.
fn large_copy(case: &Case, id: &str) -> Result<()> {
    let (source, copy) = (case.node.dirs().top().join("large"), case.node.dirs().top().join("copy"));
    pattern::write(&source, LARGE)?;
    let daemon = case.node.daemon_pid().context("no daemon")?;
    let before = pss_kib(daemon)?;
    let program = crictl(case, &format!("exec -i {id} cat"))?;
    let mut running =
        program.start_with(File::open(&source)?.into(), File::create(&copy)?.into(), Stdio::inherit())?;
    let mut most = before;
    wait::until("the copy to be whole", 10 * PATIENCE, || {
        most = most.max(pss_kib(daemon)?);
        let length = std::fs::metadata(&copy)?.len();
        ensure!(length == LARGE, "{length} bytes");
        Ok(())
    })?;
    ensure!(running.wait(PATIENCE)?.success(), "crictl failed");
    ensure!(pattern::same(&source, &copy)?, "the copy differs");
    ensure!(most < before + GROWTH, "the daemon grew from {before} to {most} KiB");
    std::fs::remove_file(&source)?;
    std::fs::remove_file(&copy)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_a_terminal() -> Result<()> {
    let Some(case) = Case::open("a_shell_has_a_terminal", Setup::default()).await? else { return Ok(()) };
    let (pod_id, id) = case.sleeper(&case.cri.pod("shell")).await?;
    for transport in TRANSPORTS {
        let (terminal, program) = Terminal::open(31, 101)?;
        let [stdin, stdout, stderr] = Terminal::stdio(&program)?;
        let exec = crictl(&case, &format!("exec -r {transport} -i -t {id} sh"))?;
        let mut running = exec.start_with(stdin, stdout, stderr)?;
        drop(program);
        terminal.expect("# ")?;
        terminal.enter("echo $((6 * 7))\r")?;
        terminal.expect("\r\n42\r\n")?;
        terminal.enter("stty size\r")?;
        terminal.expect("\r\n31 101\r\n")?;
        terminal.resize(43, 99)?;
        running.signal(Signal::WINCH)?;
        terminal.enter("while test \"$(stty size)\" != '43 99'; do sleep 0.05; done; echo re''sized\r")?;
        terminal.expect("resized\r\n")?;
        // What is written last is shown before the end.
        terminal.enter("echo go''ne; exit 3\r")?;
        terminal.expect("gone\r\n")?;
        ensure!(!running.wait(PATIENCE)?.success(), "exit code 3 was lost");
    }
    containers_with_terminals(&case, &pod_id).await?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

/// A shell that is a container's main process; its log is what the terminal showed.
async fn containers_with_terminals(case: &Case, pod_id: &str) -> Result<()> {
    let mut config = container("shell", BUSYBOX, &["sh"]);
    (config.tty, config.stdin) = (true, true);
    let id = case.cri.launch(pod_id, &config, &case.cri.pod("shell")).await?;
    for (transport, width) in TRANSPORTS.into_iter().zip([71, 72]) {
        let (terminal, program) = Terminal::open(37, width)?;
        let [stdin, stdout, stderr] = Terminal::stdio(&program)?;
        let attach = crictl(case, &format!("attach -r {transport} -i -t {id}"))?;
        let mut running = attach.start_with(stdin, stdout, stderr)?;
        drop(program);
        // The client's size may come after its first key.
        let line = format!("while test \"$(stty size)\" != '37 {width}'; do sleep 0.05; done; echo we''ll\r");
        terminal.enter(&line)?;
        terminal.expect("well\r\n")?;
        if transport == TRANSPORTS[1] {
            terminal.enter("exit 0\r")?;
            ensure!(running.wait(PATIENCE)?.success(), "the end of the container is not that of the client");
        }
    }
    let lines = e2e::log::read(&case.cri.log_path("shell", "shell"))?;
    ensure!(lines.iter().all(|line| line.stream == "stdout"), "{lines:?}");
    ensure!(lines.iter().filter(|line| line.content.ends_with("well")).count() == 2, "{lines:?}");
    Ok(())
}

fn attach(case: &Case, transport: &str, id: &str) -> Result<Attached> {
    Attached::start(&crictl(case, &format!("attach -r {transport} -i {id}"))?)
}

const ECHO: &str = "while read line; do echo out $line; echo err $line >&2; done; echo the end";

#[tokio::test(flavor = "multi_thread")]
async fn clients_join_a_container() -> Result<()> {
    let Some(case) = Case::open("clients_join_a_container", Setup::default()).await? else { return Ok(()) };
    let pod = case.cri.pod("attach");
    let pod_id = case.cri.run_pod(&pod).await?;
    for (transport, stdin_once) in TRANSPORTS.into_iter().flat_map(|t| [(t, false), (t, true)]) {
        let name = format!("echo-{transport}-{stdin_once}");
        let mut config = container(&name, BUSYBOX, &["sh", "-c", ECHO]);
        (config.stdin, config.stdin_once) = (true, stdin_once);
        let id = case.cri.launch(&pod_id, &config, &pod).await?;
        let mut first = attach(&case, transport, &id)?;
        first.enter("one\n")?;
        first.expect("out one")?;
        if stdin_once {
            drop(first.running.child.stdin.take());
            first.expect("the end")?;
            ensure!(first.running.wait(PATIENCE)?.success());
        } else {
            let mut second = attach(&case, transport, &id)?;
            second.enter("two\n")?;
            second.expect("out two")?;
            first.expect("out two")?;
            drop(second);
            // Nobody's end is the container's.
            first.enter("three\n")?;
            first.expect("out three")?;
        }
        drop(first);
        let expected = if stdin_once { "the end" } else { "out three" };
        wait::until("the log to be whole", PATIENCE, || {
            let log = std::fs::read_to_string(case.cri.log_path("attach", &name))?;
            ensure!(log.contains(expected) && log.contains("stderr F err one"), "{log}");
            Ok(())
        })?;
        case.cri.stop(&id, 0).await?;
        case.cri.remove(&id).await?;
    }
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_leaves_nothing() -> Result<()> {
    let Some(case) = Case::open("a_killed_client_leaves_nothing", Setup::default()).await? else {
        return Ok(());
    };
    let (pod_id, id) = case.sleeper(&case.cri.pod("gone")).await?;
    let alone = case.node.ancestry().of_pod(&pod_id)?.len();
    let rest = case.node.settled_snapshot()?;
    let script = "cat /dev/zero & busybox sleep 1001 | cat & while :; do sleep 1; done";
    for transport in TRANSPORTS {
        let exec = crictl(&case, &format!("exec -r {transport} -i {id} sh -c"))?.arg(script);
        // Nobody reads what the command writes without end.
        let running = exec.start_piped()?;
        wait::until("the command to be up", PATIENCE, || {
            let count = case.node.ancestry().of_pod(&pod_id)?.len();
            ensure!(count >= alone + 4, "{count} processes");
            Ok(())
        })?;
        let mut attached = attach(&case, transport, &id)?;
        attached.running.alive()?;
        running.signal(Signal::KILL)?;
        attached.running.signal(Signal::KILL)?;
        wait::until("everything of the command to be gone", PATIENCE, || {
            let left = case.node.ancestry().of_pod(&pod_id)?.len();
            ensure!(left == alone, "{left} processes, {alone} before");
            Ok(())
        })?;
    }
    let output = case.cri.exec(&id, &["echo", "still here"], 10).await?;
    ensure!(output.stdout == "still here\n", "{output:?}");
    case.node.expect_no_leaks(&rest)?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_with_the_daemon() -> Result<()> {
    let Some(mut case) = Case::open("commands_end_with_the_daemon", Setup::default()).await? else {
        return Ok(());
    };
    let (pod_id, id) = case.sleeper(&case.cri.pod("restart")).await?;
    let alone = case.node.ancestry().of_pod(&pod_id)?.len();
    let mut exec =
        crictl(&case, &format!("exec -i {id} sh -c"))?.arg("sleep 1001 & sleep 1002; true").start_piped()?;
    wait::until("the command to be up", PATIENCE, || {
        let count = case.node.ancestry().of_pod(&pod_id)?.len();
        ensure!(count >= alone + 3, "{count} processes");
        Ok(())
    })?;
    case.node.kill_daemon()?;
    // Whatever it makes of a connection that breaks off.
    exec.wait(PATIENCE)?;
    case.node.start_daemon()?;
    wait::until("the command to be gone", PATIENCE, || {
        let left = case.node.ancestry().of_pod(&pod_id)?.len();
        ensure!(left == alone, "{left} processes, {alone} before");
        Ok(())
    })?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_pods_are_reached() -> Result<()> {
    let Some(case) = Case::open("ports_of_pods_are_reached", Setup::default()).await? else { return Ok(()) };
    let (pod_id, _) = case.sleeper(&case.cri.pod("ports")).await?;
    let pid = *case.node.ancestry().of_pod(&pod_id)?.first().context("the pod has no process")? as u32;
    reverse(pid, Ipv4Addr::LOCALHOST.into(), 7000)?;
    reverse(pid, Ipv6Addr::LOCALHOST.into(), 7001)?;
    for (transport, base) in TRANSPORTS.into_iter().zip([7100, 7200]) {
        let log: PathBuf = case.node.dirs().top().join(format!("forward-{transport}.log"));
        let ports = format!("{base}:7000 {}:7001 {}:7002", base + 1, base + 2);
        let forward = crictl(&case, &format!("port-forward -r {transport} {pod_id} {ports}"))?.start(&log)?;
        // It listens on one port after another.
        let mut slow = wait::until("the forward", PATIENCE, || connect(&case, base))?;
        wait::until("the second port", PATIENCE, || connect(&case, base + 1))?;
        wait::until("the third port", PATIENCE, || {
            let text = std::fs::read_to_string(&log)?;
            ensure!(text.contains(&format!("Forwarding from 127.0.0.1:{}", base + 2)), "{text}");
            Ok(())
        })?;
        slow.write_all(b"abc")?;
        let large = vec![b'x'; 1 << 20];
        for (port, message) in [(base, &b"over 4"[..]), (base + 1, b"over 6"), (base, &large)] {
            let expect: Vec<u8> = message.iter().rev().copied().collect();
            let answer = finish(connect(&case, port)?, message)?;
            ensure!(answer == expect, "{transport} {port}: {} bytes", answer.len());
        }
        ensure!(finish(slow, b"def")? == b"fedcba", "{transport}: the first connection was lost");
        // The client gives its whole connection up when it is told of a failure, so this one is the last.
        let refused = finish(connect(&case, base + 2)?, b"");
        ensure!(refused.as_ref().map_or(true, Vec::is_empty), "{transport}: {refused:?}");
        wait::until("the refusal to be told", PATIENCE, || {
            let text = std::fs::read_to_string(&log)?;
            ensure!(text.contains("7002") && text.contains(&pod_id) && text.contains("refused"), "{text}");
            Ok(())
        })?;
        drop(forward);
    }
    let mut runtime = case.cri.runtime.clone();
    for (port, code) in [(vec![0], Code::InvalidArgument), (vec![65_536], Code::InvalidArgument)] {
        let request = api::PortForwardRequest { pod_sandbox_id: pod_id.clone(), port };
        let found = runtime.port_forward(request).await.err().map(|status| status.code());
        ensure!(found == Some(code), "{found:?}");
    }
    case.cri.stop_pod(&pod_id).await?;
    let request = api::PortForwardRequest { pod_sandbox_id: pod_id.clone(), port: vec![80] };
    let found = runtime.port_forward(request).await.err().map(|status| status.code());
    ensure!(found == Some(Code::FailedPrecondition), "{found:?}");
    case.cri.remove_pod(&pod_id).await?;
    case.close()
}

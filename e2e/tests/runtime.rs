//! Pods and containers from their first to their last call: states, exit codes, exec, logs. Each case leaves nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::container;
use e2e::daemon::{Endpoint, Setup};
use e2e::http::Origin;
use e2e::image::set::{BUSYBOX, FORMATS, WEB};
use e2e::{log, wait};
use proto::cri::{self as api, ContainerState, PodSandboxState};
use tonic::Code;

const EXIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_and_ends() -> Result<()> {
    let Some(case) = Case::open("a_pod_lives_and_ends", Setup::default()).await? else { return Ok(()) };
    let cri = &case.cri;
    let mut pod = cri.pod("life");
    pod.labels.insert("tier".into(), "front".into());
    pod.annotations.insert("note".into(), "kept as it is".into());
    let pod_id = cri.run_pod(&pod).await?;
    let status = cri.pod_status(&pod_id).await?;
    ensure!(status.state() == PodSandboxState::SandboxReady && status.created_at > 0, "{status:?}");
    ensure!(status.metadata == pod.metadata && status.labels == pod.labels, "{status:?}");
    ensure!(status.annotations == pod.annotations, "{status:?}");
    let ip = status.network.context("no network status")?.ip;
    ensure!(ip.starts_with("10.88.0."), "address {ip}");

    let mut config = container("sleeper", BUSYBOX, &["sleep", "100000"]);
    config.labels.insert("app".into(), "sleeper".into());
    let id = cri.create(&pod_id, &config, &pod).await?;
    ensure!(cri.status(&id).await?.state() == ContainerState::ContainerCreated);
    cri.start(&id).await?;
    let status = cri.status(&id).await?;
    ensure!(status.state() == ContainerState::ContainerRunning && status.started_at >= status.created_at);
    ensure!(status.labels == config.labels && status.finished_at == 0, "{status:?}");
    let again = cri.start(&id).await;
    ensure!(again.is_err(), "a running container was started again");

    cri.stop(&id, 1).await?;
    let status = cri.status(&id).await?;
    ensure!(status.state() == ContainerState::ContainerExited && status.exit_code == 137, "{status:?}");
    ensure!(status.finished_at >= status.started_at, "{status:?}");
    cri.stop(&id, 1).await?;
    cri.stop_pod(&pod_id).await?;
    cri.stop_pod(&pod_id).await?;
    ensure!(cri.pod_status(&pod_id).await?.state() == PodSandboxState::SandboxNotready);
    cri.remove(&id).await?;
    cri.remove(&id).await?;
    cri.remove_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    let gone = cri.pod_status(&pod_id).await.err().map(|status| status.code());
    ensure!(gone == Some(Code::NotFound), "{gone:?}");
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_pod_takes_its_containers_along() -> Result<()> {
    let Some(case) = Case::open("removing_a_pod_takes_its_containers_along", Setup::default()).await? else {
        return Ok(());
    };
    let cri = &case.cri;
    let pod = cri.pod("bundle");
    let (pod_id, running) = case.sleeper(&pod).await?;
    let created = cri.create(&pod_id, &container("created", BUSYBOX, &["true"]), &pod).await?;
    let exited = cri.launch(&pod_id, &container("exited", BUSYBOX, &["true"]), &pod).await?;
    cri.exited(&exited, EXIT).await?;
    cri.stop_pod(&pod_id).await?;
    ensure!(cri.status(&running).await?.state() == ContainerState::ContainerExited);
    cri.remove_pod(&pod_id).await?;
    for id in [running, created, exited] {
        let code = cri.status(&id).await.err().map(|status| status.code());
        ensure!(code == Some(Code::NotFound), "{code:?}");
    }
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_reasons_are_kept() -> Result<()> {
    let Some(case) = Case::open("exit_codes_and_reasons_are_kept", Setup::default()).await? else {
        return Ok(());
    };
    let cri = &case.cri;
    let pod = cri.pod("exits");
    let pod_id = cri.run_pod(&pod).await?;
    let cases = [
        ("zero", "exit 0", 0, "Completed"),
        ("three", "exit 3", 3, "Error"),
        ("most", "exit 255", 255, "Error"),
        ("killed", "sh -c 'kill -9 $$'; exit $?", 137, "Error"),
        ("late", "sleep 0.3; exit 42", 42, "Error"),
    ];
    for (name, line, code, reason) in cases {
        let id = cri.launch(&pod_id, &container(name, BUSYBOX, &["sh", "-c", line]), &pod).await?;
        let status = cri.exited(&id, EXIT).await?;
        ensure!((status.exit_code, status.reason.as_str()) == (code, reason), "{line}: {status:?}");
        // The reference stamps a start when it hears of it, which may be after the end.
        ensure!(status.finished_at >= status.started_at || !case.is_berth(), "{line}: {status:?}");
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_term_and_waits_for_the_grace() -> Result<()> {
    let Some(case) = Case::open("a_stop_sends_term_and_waits_for_the_grace", Setup::default()).await? else {
        return Ok(());
    };
    let cri = &case.cri;
    let pod = cri.pod("stops");
    let pod_id = cri.run_pod(&pod).await?;
    let line = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let id = cri.launch(&pod_id, &container("polite", BUSYBOX, &["sh", "-c", line]), &pod).await?;
    let path = cri.log_path("stops", "polite");
    wait::until("the trap", EXIT, || {
        ensure!(!log::read(&path)?.is_empty());
        Ok(())
    })?;
    cri.stop(&id, 20).await?;
    ensure!(cri.status(&id).await?.exit_code == 7, "{:?}", cri.status(&id).await?);
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_output_and_exit_code() -> Result<()> {
    let Some(case) = Case::open("exec_gives_output_and_exit_code", Setup::default()).await? else {
        return Ok(());
    };
    let cri = &case.cri;
    let pod = cri.pod("exec");
    let (pod_id, id) = case.sleeper(&pod).await?;
    let cases = [
        ("echo out; echo err >&2", 0, "out\n", "err\n"),
        ("exit 5", 5, "", ""),
        ("cat /proc/self/cgroup > /dev/null; printf '%s' \"$PATH\"", 0, PATH, ""),
    ];
    for (line, code, stdout, stderr) in cases {
        let output = cri.exec(&id, &["sh", "-c", line], 60).await?;
        ensure!(
            output.code == code && output.stdout == stdout && output.stderr == stderr,
            "{line}: {output:?}"
        );
    }
    let large = cri.exec(&id, &["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"], 20).await?;
    ensure!(large.stdout.len() == 1_000_000, "{} bytes", large.stdout.len());
    let late = cri.exec(&id, &["sleep", "77"], 1).await.err().map(|status| status.code());
    ensure!(late == Some(Code::DeadlineExceeded), "{late:?}");
    let left = cri.exec(&id, &["sh", "-c", "ps | grep -c '[s]leep 77'"], 60).await?;
    ensure!(left.stdout.trim() == "0", "the late command lives on: {left:?}");
    cri.stop(&id, 0).await?;
    ensure!(cri.exec(&id, &["true"], 1).await.is_err(), "exec in an exited container");
    cri.end_pod(&pod_id).await?;
    case.close()
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_complete_and_can_be_rotated() -> Result<()> {
    let Some(case) = Case::open("logs_are_complete_and_can_be_rotated", Setup::default()).await? else {
        return Ok(());
    };
    let cri = &case.cri;
    let pod = cri.pod("logs");
    let pod_id = cri.run_pod(&pod).await?;
    let line = "echo one; echo two >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; printf unfinished";
    let id = cri.launch(&pod_id, &container("speaker", BUSYBOX, &["sh", "-c", line]), &pod).await?;
    cri.exited(&id, EXIT).await?;
    let path = cri.log_path("logs", "speaker");
    ensure!(cri.status(&id).await?.log_path == path.to_string_lossy());
    let lines = wait::until("four lines in the log", EXIT, || {
        let lines = log::read(&path)?;
        ensure!(lines.len() == 4, "{} lines", lines.len());
        Ok(lines)
    })?;
    let of = |stream: &str| {
        lines.iter().filter(|l| l.stream == stream).map(|l| l.content.len()).collect::<Vec<_>>()
    };
    ensure!(of("stdout") == [3, 40000, 10] && of("stderr") == [3], "{:?} {:?}", of("stdout"), of("stderr"));

    let forever = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done";
    let id = cri.launch(&pod_id, &container("counter", BUSYBOX, &["sh", "-c", forever]), &pod).await?;
    let path = cri.log_path("logs", "counter");
    wait::until("the first lines", EXIT, || {
        ensure!(log::read(&path)?.len() > 3);
        Ok(())
    })?;
    let rotated = path.with_extension("log.1");
    std::fs::rename(&path, &rotated)?;
    let reopen = api::ReopenContainerLogRequest { container_id: id.clone() };
    cri.runtime.clone().reopen_container_log(reopen).await?;
    ensure!(path.exists(), "there is no log after the reopening");
    wait::until("lines after the rotation", EXIT, || {
        ensure!(log::read(&path)?.len() > 3);
        Ok(())
    })?;
    cri.stop(&id, 0).await?;
    let both = [log::read(&rotated)?, log::read(&path)?].concat();
    for (expect, line) in both.iter().enumerate() {
        ensure!(line.content == expect.to_string(), "line {expect} says {:?}", line.content);
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_every_form_run() -> Result<()> {
    let Some(case) = Case::open("images_of_every_form_run", Setup::default()).await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = cri.pod("forms");
    let pod_id = cri.run_pod(&pod).await?;
    for (number, image) in FORMATS.iter().enumerate() {
        let id = cri.pull(image).await.with_context(|| (*image).to_owned())?;
        let shown = cri.image(image).await?.with_context(|| format!("{image} is not shown"))?;
        ensure!(shown.repo_tags == [(*image).to_owned()], "{shown:?}");
        ensure!(shown.size > 100_000 && (!case.is_berth() || shown.id == id), "{shown:?}");
        let config = container(&format!("form{number}"), image, &["test", "-x", "/bin/busybox"]);
        let status = cri.exited(&cri.launch(&pod_id, &config, &pod).await?, EXIT).await?;
        ensure!(status.exit_code == 0, "{image}: {status:?}");
    }
    cri.end_pod(&pod_id).await?;
    for image in FORMATS {
        cri.remove_image(image).await?;
        ensure!(cri.image(image).await?.is_none(), "{image} is still here");
    }
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn published_ports_lead_to_the_pod() -> Result<()> {
    let Some(mut case) = Case::open("published_ports_lead_to_the_pod", Setup::default()).await? else {
        return Ok(());
    };
    case.cri.pull(WEB).await?;
    case.accept_present_state()?;
    let cri = &case.cri;
    let mut pod = cri.pod("ports");
    pod.port_mappings = vec![api::PortMapping { container_port: 80, host_port: 18081, ..Default::default() }];
    let pod_id = cri.run_pod(&pod).await?;
    let mut config = container("web", WEB, &[]);
    config.command.clear();
    cri.launch(&pod_id, &config, &pod).await?;
    let ip = cri.pod_status(&pod_id).await?.network.context("no network status")?.ip;
    let holder = Some(case.node.holder_pid());
    for address in [format!("{ip}:80"), "127.0.0.1:18081".to_owned()] {
        let origin = Origin { address: address.parse()?, holder };
        let page = wait::until("an answer", EXIT, || origin.request("GET", "/", None)).context(address)?;
        ensure!(page.status == 200 && page.body.starts_with(b"<h1>It serves."), "{page:?}");
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

/// Whoever takes the rules of the pods' network away: the runtime has them made again, and no pod notices.
#[tokio::test(flavor = "multi_thread")]
async fn lost_network_rules_come_back() -> Result<()> {
    let Some(mut case) = Case::open("lost_network_rules_come_back", Setup::default()).await? else {
        return Ok(());
    };
    if !case.is_berth() {
        return case.close();
    }
    case.cri.pull(WEB).await?;
    case.accept_present_state()?;
    let mut pod = case.cri.pod("rules");
    pod.port_mappings = vec![api::PortMapping { container_port: 80, host_port: 18082, ..Default::default() }];
    let pod_id = case.cri.run_pod(&pod).await?;
    let mut config = container("web", WEB, &[]);
    config.command.clear();
    let id = case.cri.launch(&pod_id, &config, &pod).await?;
    let before = case.cri.status(&id).await?;
    let origin = Origin { address: "127.0.0.1:18082".parse()?, holder: Some(case.node.holder_pid()) };
    let works = |what: &str| -> Result<()> {
        wait::until(what, EXIT, || origin.request("GET", "/", None)).map(drop)?;
        wait::until(what, EXIT, || {
            let rules = case.node.program("nft").args(["list", "ruleset"]).ok()?;
            ensure!(rules.contains("berth_masquerade") && rules.contains("berth_portmap"), "{rules}");
            Ok(())
        })
    };
    works("the port")?;
    case.node.program("nft").args(["flush", "ruleset"]).silent()?;
    works("the port after all rules were flushed")?;
    case.node.program("nft").args(["delete", "table", "inet", "berth_portmap"]).silent()?;
    works("the port after its table was removed")?;
    // While nobody listens, too.
    case.node.kill_daemon()?;
    case.node.program("nft").args(["flush", "ruleset"]).silent()?;
    case.node.start_daemon()?;
    let origin = Origin { address: "127.0.0.1:18082".parse()?, holder: Some(case.node.holder_pid()) };
    wait::until("the port after a restart", EXIT, || origin.request("GET", "/", None)).map(drop)?;
    case.cri = case.node.cri().await?;
    let after = case.cri.status(&id).await?;
    ensure!(after.started_at == before.started_at && after.state() == ContainerState::ContainerRunning);
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_gets_the_result_of_the_first_call() -> Result<()> {
    let Some(case) = Case::open("a_retry_gets_the_result_of_the_first_call", Setup::default()).await? else {
        return Ok(());
    };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    let pod = cri.pod("retry");
    let (one, two) = tokio::join!(cri.run_pod(&pod), cri.run_pod(&pod));
    let (one, two) = (one?, two?);
    ensure!(one == two, "two pods of one name: {one} and {two}");
    let mut other = pod.clone();
    other.hostname = "another".to_owned();
    let refused = cri.run_pod(&other).await.err().map(|status| status.code());
    ensure!(refused == Some(Code::AlreadyExists), "{refused:?}");
    let config = container("retried", BUSYBOX, &["sleep", "1000"]);
    let (a, b) = tokio::join!(cri.create(&one, &config, &pod), cri.create(&one, &config, &pod));
    ensure!(a.as_ref().ok() == b.as_ref().ok() && a.is_ok(), "{a:?} {b:?}");
    cri.end_pod(&one).await?;
    let again = cri.run_pod(&pod).await?;
    ensure!(again != one, "a removed pod's id came back");
    cri.end_pod(&again).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_the_signal_that_the_request_names() -> Result<()> {
    let test = "a_stop_sends_the_signal_that_the_request_names";
    let Some(case) = Case::open(test, Setup::of(Endpoint::Berth)).await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = cri.pod("signals");
    let pod_id = cri.run_pod(&pod).await?;
    let line = "trap 'exit 5' USR1; trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done";
    for (name, signal, code) in
        [("named", api::Signal::Sigusr1, 5), ("default", api::Signal::RuntimeDefault, 6)]
    {
        let mut config = container(name, BUSYBOX, &["sh", "-c", line]);
        config.stop_signal = signal.into();
        let id = cri.launch(&pod_id, &config, &pod).await?;
        let path = cri.log_path("signals", name);
        wait::until("the traps", EXIT, || {
            ensure!(!log::read(&path)?.is_empty());
            Ok(())
        })?;
        let shown = api::Signal::try_from(cri.status(&id).await?.stop_signal)?;
        let expect = if code == 5 { api::Signal::Sigusr1 } else { api::Signal::Sigterm };
        ensure!(shown == expect, "{name} shows {shown:?}");
        cri.stop(&id, 20).await?;
        let status = cri.status(&id).await?;
        ensure!(status.exit_code == code, "{name}: {status:?}");
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

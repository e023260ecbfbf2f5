//! What kubectl asks a node for, at the HTTPS endpoints of a real kubelet: exec, attach, port-forward and logs, which
//! it fetches from the streaming server, without and with TLS between the two.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::daemon::{Endpoint, Setup};
use e2e::kubelet::Kubelet;
use e2e::kubelet::pod::{pod, ready, running, shell};
use e2e::{tls, wait};
use proto::cri::{ListPodSandboxRequest, PodSandboxState};
use serde_json::{Value, json};

/// For what happens within a few seconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);
const POD: &str = "streams";
/// What the kubelet passes on as it comes, and what it translates to SPDY.
const PROTOCOLS: [&str; 2] = ["v4.channel.k8s.io", "v5.channel.k8s.io"];
/// Bytes of the file that is forwarded.
const PAGE: usize = 100_000;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_hands_streams_on() -> Result<()> {
    let Some(mut case) = Case::open("a_kubelet_hands_streams_on", Setup::of(Endpoint::Berth)).await? else {
        return Ok(());
    };
    let kubelet = Kubelet::start(&case.node)?;
    case.accept_present_state()?;
    kubelet.apply(&manifest())?;
    kubelet.until(POD, SOON, |pod| {
        running(pod, "shell")?;
        ready(pod, "web")
    })?;
    check_streams(&kubelet).context("without TLS")?;
    tls::secure_streams(&mut case.node)?;
    case.cri = case.node.cri().await?;
    wait::until("a kubelet that has found the daemon again", SOON, || {
        command(&kubelet, PROTOCOLS[0], "true", b"").map(drop)
    })?;
    check_streams(&kubelet).context("with TLS")?;
    kubelet.remove(POD)?;
    wait::until_async("the end of the pod", SOON, || end(&case)).await?;
    // Cgroups of pods are the kubelet's to remove.
    case.settle()?;
    drop(kubelet);
    case.close()
}

/// Removes the pod once it is stopped: the kubelet would take a minute.
async fn end(case: &Case) -> Result<()> {
    for pod in
        case.cri.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items
    {
        ensure!(pod.state() == PodSandboxState::SandboxNotready, "{} is still ready", pod.id);
        case.cri.remove_pod(&pod.id).await?;
    }
    Ok(())
}

fn manifest() -> Value {
    let mut echo =
        shell("shell", "while read line; do echo out $line; echo err $line >&2; done; sleep 100000");
    echo["stdin"] = json!(true);
    let page = format!("mkdir /www; head -c {PAGE} /dev/zero >/www/page; exec httpd -f -p 8080 -h /www");
    pod(POD, json!([echo, shell("web", &page)]))
}

fn check_streams(kubelet: &Kubelet) -> Result<()> {
    for protocol in PROTOCOLS {
        check_exec(kubelet, protocol).with_context(|| format!("exec, {protocol}"))?;
        check_attach(kubelet, protocol).with_context(|| format!("attach, {protocol}"))?;
    }
    wait::until("the page of the web server", SOON, || check_forward(kubelet))?;
    let shown = kubelet.logs(POD, "shell")?;
    for protocol in PROTOCOLS {
        ensure!(shown.contains(&format!("out {protocol}\n")), "{protocol} is not in {shown:?}");
        ensure!(shown.contains(&format!("err {protocol}\n")), "{protocol} is not in {shown:?}");
    }
    Ok(())
}

/// What a command said on each channel.
#[derive(Debug, Default)]
struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: Vec<u8>,
}

/// Runs a line of shell with an input.
fn command(kubelet: &Kubelet, protocol: &str, line: &str, input: &[u8]) -> Result<Said> {
    let line: String = line.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let rest = format!("/shell?command=sh&command=-c&command={line}&input=1&output=1&error=1");
    let mut stream = kubelet.stream("exec", POD, &rest, protocol)?;
    for piece in input.chunks(32 << 10) {
        stream.send(STDIN, piece)?;
    }
    let mut said = Said::default();
    while let Some((channel, bytes)) = stream.next_message()? {
        match channel {
            STDOUT => said.stdout.extend(bytes),
            STDERR => said.stderr.extend(bytes),
            STATUS => {
                said.status = bytes;
                break;
            }
            other => anyhow::bail!("{} bytes on channel {other}", bytes.len()),
        }
    }
    Ok(said)
}

fn check_exec(kubelet: &Kubelet, protocol: &str) -> Result<()> {
    let line = "head -c 200000 | wc -c; echo end >&2; exit 7";
    let said = command(kubelet, protocol, line, &[b'x'; 200_000])?;
    ensure!(said.stdout == b"200000\n" && said.stderr == b"end\n", "{said:?}");
    let status: Value = serde_json::from_slice(&said.status).with_context(|| format!("{said:?}"))?;
    let cause = &status["details"]["causes"][0];
    ensure!(status["reason"] == "NonZeroExitCode" && cause["message"] == "7", "{status}");
    let said = command(kubelet, protocol, "exit 0", b"")?;
    let status: Value = serde_json::from_slice(&said.status).with_context(|| format!("{said:?}"))?;
    ensure!(status["status"] == "Success", "{status}");
    Ok(())
}

fn check_attach(kubelet: &Kubelet, protocol: &str) -> Result<()> {
    let mut stream = kubelet.stream("attach", POD, "/shell?input=1&output=1&error=1", protocol)?;
    stream.send(STDIN, format!("{protocol}\n").as_bytes())?;
    let mut said = [Vec::new(), Vec::new()];
    while said.iter().any(|bytes| !bytes.ends_with(b"\n")) {
        let (channel, mut bytes) = stream.next_message()?.context("the stream ended")?;
        match channel {
            STDOUT => said[0].append(&mut bytes),
            STDERR => said[1].append(&mut bytes),
            other => ensure!(bytes.is_empty(), "channel {other}: {}", String::from_utf8_lossy(&bytes)),
        }
    }
    let expect = ["out", "err"].map(|name| format!("{name} {protocol}\n").into_bytes());
    ensure!(said == expect, "{said:?}");
    Ok(())
}

/// Fetches a page: data are on the first channel, errors on the second; each begins with the port.
fn check_forward(kubelet: &Kubelet) -> Result<()> {
    let mut stream = kubelet.stream("portForward", POD, "?port=8080", PROTOCOLS[0])?;
    stream.send(0, b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut greeted = [false; 2];
    loop {
        let (channel, bytes) = stream.next_message()?.context("the stream ended")?;
        let greeting = greeted.get_mut(usize::from(channel)).context("a third channel")?;
        if !std::mem::replace(greeting, true) {
            ensure!(bytes == 8080_u16.to_le_bytes(), "channel {channel} begins with {bytes:?}");
        } else if channel == 0 {
            answer.extend(bytes);
        } else {
            anyhow::bail!("{}", String::from_utf8_lossy(&bytes));
        }
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(head) = head.filter(|head| answer.len() - head >= PAGE + 4) {
            ensure!(
                answer.starts_with(b"HTTP/1.") && answer.len() == head + 4 + PAGE,
                "{} bytes",
                answer.len()
            );
            return Ok(());
        }
    }
}

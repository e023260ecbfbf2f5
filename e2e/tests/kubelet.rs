//! A real kubelet drives the socket: pods from manifests, probes, restarts, log rotation, the daemon's absence.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::case::Case;
use e2e::daemon::Setup;
use e2e::image::set::{BUSYBOX, WRITER};
use e2e::kubelet::pod::{container, pod, ready, running, shell};
use e2e::kubelet::{BACK_OFF, Kubelet};
use e2e::log::{self, Line};
use e2e::wait;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// For what happens within a few seconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);
/// The kubelet collects dead pods once a minute.
const COLLECTED: Duration = Duration::from_secs(150);
/// Lines per second of the writer, and for how many seconds it writes.
const WRITER_RATE: u64 = 1000;
const WRITER_SECONDS: u64 = 9;

/// A node with a kubelet.
struct Stage {
    kubelet: Kubelet,
    case: Case,
    applied: Vec<String>,
}

impl Stage {
    /// Starts both and lets them settle; none where this machine cannot.
    async fn open(test: &str) -> Result<Option<Self>> {
        let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(None) };
        case.cri.pull(WRITER).await?;
        let started = Instant::now();
        let kubelet = Kubelet::start(&case.node)?;
        eprintln!("the kubelet is healthy after {:?}", started.elapsed());
        case.accept_present_state()?;
        Ok(Some(Self { kubelet, case, applied: Vec::new() }))
    }

    fn apply(&mut self, manifest: &Value) -> Result<()> {
        self.applied.push(text(&manifest["metadata"]["name"]).to_owned());
        self.kubelet.apply(manifest)
    }

    /// Takes every manifest away; the pods must go, with all that they had.
    fn close(self) -> Result<()> {
        for name in &self.applied {
            self.kubelet.remove(name)?;
        }
        wait::until("the end of all pods", COLLECTED, || {
            let left = self.kubelet.pod_dirs()?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        let complaints = self.kubelet.complaints();
        let missed = complaints.iter().filter(|line| line.contains("Unimplemented"));
        ensure!(missed.count() == 0, "the kubelet misses a call: {complaints:?}");
        drop(self.kubelet);
        self.case.close()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Contents of one log, without times.
fn contents(path: &Path) -> Result<Vec<String>> {
    Ok(log::read(path)?.into_iter().map(|line| line.content).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn static_pods_live_as_written() -> Result<()> {
    let Some(mut stage) = Stage::open("static_pods_live_as_written").await? else { return Ok(()) };
    let all = [ordered(), probed(), crashing(), hungry(), talkative()];
    for manifest in &all {
        stage.apply(manifest)?;
    }
    check_order(&stage).await.context("init containers")?;
    check_probes(&stage).await.context("probes")?;
    check_out_of_memory(&stage).context("memory")?;
    check_crashes(&stage).context("crash loop")?;
    check_rotation(&stage).await.context("log rotation")?;
    check_statistics(&stage).context("statistics")?;
    check_kubelet_restart(&mut stage).context("another kubelet")?;
    stage.close()
}

/// Pods that only sleep, for the daemon's absence.
const SLEEPERS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_gets_over_the_daemons_death() -> Result<()> {
    let Some(mut stage) = Stage::open("a_kubelet_gets_over_the_daemons_death").await? else { return Ok(()) };
    let started = Instant::now();
    let names: Vec<String> = (0..SLEEPERS).map(|number| format!("sleeper-{number}")).collect();
    for name in &names {
        stage.apply(&sleeper(name))?;
    }
    let mut ids = BTreeMap::new();
    for name in &names {
        let id =
            stage.kubelet.until(name, SOON, |pod| ready(pod, "main").and_then(|()| running(pod, "main")))?;
        ids.insert(name, id);
    }
    eprintln!("{SLEEPERS} pods are ready after {:?}", started.elapsed());
    let (removed, leaver, staying) = (&names[0], &names[1], &names[2..]);
    let processes = staying.iter().map(|name| process(&stage, &ids[name])).collect::<Result<Vec<_>>>()?;

    stage.case.node.kill_daemon()?;
    stage.kubelet.remove(removed)?;
    stage.applied.retain(|name| name != removed);
    let (pid, _) = process(&stage, &ids[leaver])?;
    kill_process(Pid::from_raw(pid).context("no pid")?, Signal::KILL)?;
    stage.apply(&sleeper("late"))?;
    wait::until("the kubelet's complaint", SOON, || {
        let complaints = stage.kubelet.complaints();
        ensure!(complaints.iter().any(|line| line.contains("cri.sock")), "{complaints:?}");
        Ok(())
    })?;
    stage.case.node.start_daemon()?;
    stage.case.cri = stage.case.node.cri().await?;

    stage.kubelet.until("late", SOON, |pod| ready(pod, "main"))?;
    stage.kubelet.until(leaver, SOON, |pod| {
        let status = container(pod, "main")?;
        ensure!(status["restartCount"] == 1 && status["lastState"]["terminated"]["exitCode"] == 137);
        ready(pod, "main")
    })?;
    wait::until("the end of the removed pod", SOON, || {
        ensure!(stage.kubelet.pod(removed).is_err(), "the kubelet has it still");
        ensure!(process(&stage, &ids[removed]).is_err(), "it still runs");
        Ok(())
    })?;
    for name in staying {
        let pod = stage.kubelet.pod(name)?;
        ready(&pod, "main").with_context(|| name.clone())?;
        ensure!(running(&pod, "main")? == ids[name], "{name} has another container");
    }
    let now = staying.iter().map(|name| process(&stage, &ids[name])).collect::<Result<Vec<_>>>()?;
    ensure!(now == processes, "{processes:?} became {now:?}");
    stage.close()
}

fn sleeper(name: &str) -> Value {
    pod(name, json!([{"name": "main", "image": BUSYBOX, "command": ["sleep", "100000"]}]))
}

/// The one process of a container: its pid, and its start in the kernel's ticks, so that another one is told apart.
fn process(stage: &Stage, id: &str) -> Result<(i32, String)> {
    let all = stage.case.node.ancestry().of_pod(id)?;
    let [pid] = all[..] else { bail!("container {id} has the processes {all:?}") };
    Ok((pid, stat(pid)?.get(19).cloned().context("no start time")?))
}

/// The fields of a process's `stat` from the third one on (proc_pid_stat(5)).
fn stat(pid: i32) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(") ").context("no name in stat")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// Two init containers and a main one that share a volume in memory.
fn ordered() -> Value {
    let line = |word: &str| format!("echo {word} >> /shared/order; cat /shared/order");
    let mounted = |name: &str, line: &str| {
        let mut container = shell(name, line);
        container["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
        container
    };
    let mut main = mounted("main", &format!("{}; sleep 100000", line("main")));
    // Asks the registry although the image is there.
    main["imagePullPolicy"] = json!("Always");
    let mut pod = pod("ordered", json!([main]));
    pod["spec"]["initContainers"] =
        json!([mounted("first", &line("first")), mounted("second", &line("second"))]);
    pod["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {"medium": "Memory"}}]);
    pod
}

async fn check_order(stage: &Stage) -> Result<()> {
    let started = Instant::now();
    let pod = stage.kubelet.until("ordered", SOON, |pod| ready(pod, "main").map(|()| pod.clone()))?;
    eprintln!("five manifests: the first pod is ready after {:?}", started.elapsed());
    ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
    for (name, expect) in [
        ("first", vec!["first"]),
        ("second", vec!["first", "second"]),
        ("main", vec!["first", "second", "main"]),
    ] {
        wait::until(&format!("the lines of {name}"), SOON, || {
            let said = contents(&stage.kubelet.log_dir(&pod, name).join("0.log"))?;
            ensure!(said == expect, "{said:?}");
            Ok(())
        })?;
    }
    for name in ["first", "second"] {
        let end = &container(&pod, name)?["state"]["terminated"];
        ensure!(end["reason"] == "Completed" && end["exitCode"] == 0, "{name}: {end}");
    }
    ensure!(container(&pod, "main")?["image"] == BUSYBOX, "{}", pod["status"]);
    let address = text(&pod["status"]["podIP"]);
    ensure!(address.starts_with("10.88.0."), "the pod's address is {address:?}");
    let id = running(&pod, "main")?;
    let seen = stage.case.cri.shell(&id, "hostname; ip address show eth0; cat /etc/hosts").await?;
    for expect in ["ordered-kubelet-node\n", &format!("inet {address}/24"), &format!("{address}\tordered-")] {
        ensure!(seen.contains(expect), "no {expect:?} in {seen}");
    }
    Ok(())
}

/// A web server that is alive while a file is there, and ready while another one is.
fn probed() -> Value {
    let mut server =
        shell("server", "mkdir /www; touch /www/alive /www/ready; exec httpd -f -p 8080 -h /www");
    let alive = json!({"command": ["test", "-e", "/www/alive"]});
    let ready = json!({"path": "/ready", "port": 8080});
    server["startupProbe"] = json!({
        "exec": alive, "periodSeconds": 1, "failureThreshold": 60, "timeoutSeconds": 20,
    });
    server["livenessProbe"] = json!({
        "exec": alive, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20,
    });
    server["readinessProbe"] = json!({
        "httpGet": ready, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20,
    });
    pod("probed", json!([server]))
}

async fn check_probes(stage: &Stage) -> Result<()> {
    let (kubelet, cri) = (&stage.kubelet, &stage.case.cri);
    let server = |pod: &Value| ready(pod, "server").and_then(|()| running(pod, "server"));
    let first = kubelet.until("probed", SOON, server)?;
    cri.shell(&first, "rm /www/ready").await?;
    kubelet.until("probed", SOON, |pod| {
        ensure!(ready(pod, "server").is_err(), "it is still ready");
        running(pod, "server").map(drop)
    })?;
    cri.shell(&first, "touch /www/ready").await?;
    let again = kubelet.until("probed", SOON, server)?;
    ensure!(again == first, "an unready container was restarted");

    cri.shell(&first, "rm /www/alive").await?;
    let second = kubelet.until("probed", SOON, |pod| {
        let status = container(pod, "server")?;
        ensure!(status["restartCount"] == 1, "it was not restarted");
        server(pod)
    })?;
    ensure!(second != first, "the same container runs");
    let last = kubelet.until("probed", SOON, |pod| Ok(container(pod, "server")?["lastState"].clone()))?;
    // The server ignores the signal, being the first of its PID namespace.
    ensure!(last["terminated"]["exitCode"] == 137, "{last}");
    ensure!(text(&last["terminated"]["containerID"]).ends_with(&first), "{last}");
    Ok(())
}

/// A container that ends with a code.
fn crashing() -> Value {
    pod("crashing", json!([shell("crasher", "echo here; sleep 1; exit 3")]))
}

fn check_crashes(stage: &Stage) -> Result<()> {
    let mut ends = BTreeMap::new();
    for restarts in 1..=3 {
        let status = stage.kubelet.until("crashing", SOON, |pod| {
            let status = container(pod, "crasher")?;
            ensure!(status["restartCount"].as_u64() >= Some(restarts), "not yet started again");
            ensure!(status["state"]["waiting"]["reason"] == "CrashLoopBackOff", "it does not back off");
            Ok(status.clone())
        })?;
        let end = &status["lastState"]["terminated"];
        ensure!(end["exitCode"] == 3 && end["reason"] == "Error", "{end}");
        let times = (seconds(text(&end["startedAt"]))?, seconds(text(&end["finishedAt"]))?);
        ends.insert(status["restartCount"].as_u64(), times);
    }
    for (before, after) in ends.values().zip(ends.values().skip(1)) {
        let pause = (after.0 + 86_400 - before.1) % 86_400;
        ensure!(pause + 1 >= BACK_OFF.as_secs(), "started again after {pause} s: {ends:?}");
    }
    stage.kubelet.until("crashing", SOON, |pod| {
        running(pod, "crasher")?;
        let restarts = container(pod, "crasher")?["restartCount"].as_u64().unwrap_or_default();
        let before = stage.kubelet.log_dir(pod, "crasher").join(format!("{}.log", restarts - 1));
        let said = contents(&before)?;
        ensure!(said == ["here"], "{} is {said:?}", before.display());
        Ok(())
    })
}

/// Seconds of the day of an RFC 3339 time.
fn seconds(time: &str) -> Result<u64> {
    let clock = time.get(11..19).with_context(|| format!("{time:?} is no time"))?;
    clock.split(':').try_fold(0, |sum, part| Ok(sum * 60 + part.parse::<u64>()?))
}

/// A container that wants more memory than it may have.
fn hungry() -> Value {
    let mut eater = shell("eater", "");
    eater["command"] = json!(["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"]);
    eater["resources"] = json!({"limits": {"memory": "32Mi"}});
    pod("hungry", json!([eater]))
}

fn check_out_of_memory(stage: &Stage) -> Result<()> {
    stage.kubelet.until("hungry", SOON, |pod| {
        let status = container(pod, "eater")?;
        ensure!(status["restartCount"].as_u64() >= Some(1), "not yet killed");
        let end = &status["lastState"]["terminated"];
        ensure!(end["reason"] == "OOMKilled" && end["exitCode"] == 137, "{end}");
        Ok(())
    })
}

/// A container that writes several times what one log file may hold, and then waits.
fn talkative() -> Value {
    let mut writer =
        shell("writer", &format!("/writer {WRITER_RATE} {WRITER_SECONDS}; echo done >&2; sleep 100000"));
    writer["image"] = json!(WRITER);
    pod("talkative", json!([writer]))
}

async fn check_rotation(stage: &Stage) -> Result<()> {
    let pod = stage.kubelet.pod("talkative")?;
    let dir = stage.kubelet.log_dir(&pod, "writer");
    let lines = wait::until("the writer's last line in rotated logs", SOON, || {
        let files = log::rotated(&dir)?;
        ensure!(files.len() > 2, "{} files", files.len());
        let lines = files.iter().map(|text| log::parse(text)).collect::<Result<Vec<Vec<Line>>>>()?.concat();
        ensure!(lines.iter().any(|line| line.stream == "stderr"), "it still writes");
        Ok(lines)
    })?;
    let written: Vec<Line> = lines.into_iter().filter(|line| line.stream == "stdout").collect();
    let written = log::check_written(&written)?;
    ensure!(written.lines == WRITER_RATE * WRITER_SECONDS, "{} lines", written.lines);
    Ok(())
}

fn check_statistics(stage: &Stage) -> Result<()> {
    wait::until("statistics of node and pod", SOON, || {
        let all = stage.kubelet.statistics()?;
        let none = Vec::new();
        let pods = all["pods"].as_array().unwrap_or(&none);
        let pod = pods.iter().find(|pod| text(&pod["podRef"]["name"]).starts_with("probed"));
        let pod = pod.context("the pod is missing")?;
        let server = &pod["containers"][0];
        for (what, value) in [
            ("images", &all["node"]["runtime"]["imageFs"]["usedBytes"]),
            ("received", &pod["network"]["rxBytes"]),
            ("memory of the pod", &pod["memory"]["workingSetBytes"]),
            ("memory", &server["memory"]["workingSetBytes"]),
            ("CPU", &server["cpu"]["usageCoreNanoSeconds"]),
            ("writable layer", &server["rootfs"]["usedBytes"]),
        ] {
            ensure!(value.as_u64().is_some_and(|number| number > 0), "{what}: {value} in {all}");
        }
        Ok(())
    })
}

/// A new kubelet knows the pods by what it once told the runtime about them.
fn check_kubelet_restart(stage: &mut Stage) -> Result<()> {
    let restarts = |pod: &Value| container(pod, "crasher")?["restartCount"].as_u64().context("no count");
    let main = running(&stage.kubelet.pod("ordered")?, "main")?;
    let before = restarts(&stage.kubelet.pod("crashing")?)?;
    stage.kubelet.restart()?;
    let same =
        stage.kubelet.until("ordered", SOON, |pod| ready(pod, "main").and_then(|()| running(pod, "main")))?;
    ensure!(same == main, "another container runs");
    stage.kubelet.until("crashing", SOON, |pod| {
        let now = restarts(pod)?;
        ensure!(now > before, "it was started {now} times again, {before} times before");
        Ok(())
    })
}

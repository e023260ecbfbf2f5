//! Every command of crictl that does not stream (`streaming` has the others), as an administrator types it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::case::Case;
use e2e::cgroup::{Cgroup, in_parent, is_v2};
use e2e::daemon::Setup;
use e2e::image::set::{BUSYBOX, PAUSE};
use e2e::node::Node;
use e2e::{paths, wait};
use serde_json::{Value, json};

/// crictl on a node.
struct Crictl<'a> {
    node: &'a Node,
    path: PathBuf,
    log: PathBuf,
}

impl Crictl<'_> {
    fn run(&self, line: &str) -> Result<String> {
        let endpoint = format!("unix://{}", self.node.dirs().socket().display());
        let program =
            self.node.program(&self.path).args(["--runtime-endpoint", &endpoint, "--timeout", "60s"]);
        program.args(line.split(' ')).ok()
    }

    fn json(&self, line: &str) -> Result<Value> {
        serde_json::from_str(&self.run(line)?).with_context(|| format!("output of crictl {line}"))
    }

    /// A command that goes on, in the background; what it prints goes to a file.
    fn follow(&self, line: &str) -> Result<e2e::exec::Running> {
        let endpoint = format!("unix://{}", self.node.dirs().socket().display());
        let program = self.node.program(&self.path).args(["--runtime-endpoint", &endpoint]);
        program.args(line.split(' ')).start(&self.log)
    }
}

fn write_config(path: &Path, config: &Value) -> Result<String> {
    std::fs::write(path, serde_json::to_vec_pretty(config)?)?;
    Ok(path.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_does_what_it_says() -> Result<()> {
    let Some(case) = Case::open("crictl_does_what_it_says", Setup::default()).await? else { return Ok(()) };
    let (node, top) = (&case.node, case.node.dirs().top().to_owned());
    let crictl = Crictl { node, path: paths::peer("crictl")?, log: top.join("follow.log") };

    let version = crictl.run("version")?;
    ensure!(version.contains("RuntimeApiVersion:  v1"), "{version}");
    ensure!(crictl.json("info")?["status"]["conditions"].is_array());
    images(&crictl)?;

    let pod = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web", "attempt": 1},
        "hostname": "web", "log_directory": node.dirs().logs().join("web"), "labels": {"tier": "front"},
        "linux": {"cgroup_parent": in_parent(&node.dirs().id(), "")},
    });
    let container = json!({
        "metadata": {"name": "speaker"}, "image": {"image": BUSYBOX}, "log_path": "speaker.log",
        "command": ["sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done"],
        "labels": {"app": "speaker"}, "linux": {},
    });
    let pod_file = write_config(&top.join("pod.json"), &pod)?;
    let container_file = write_config(&top.join("container.json"), &container)?;
    let pod_id = crictl.run(&format!("runp {pod_file}"))?.trim().to_owned();
    let id = crictl.run(&format!("create {pod_id} {container_file} {pod_file}"))?.trim().to_owned();
    ensure!(crictl.run("ps -a -q --no-trunc")?.trim() == id, "ps -a does not show the created container");
    crictl.run(&format!("start {id}"))?;
    running(&crictl, &pod_id, &id)?;

    crictl.run(&format!("stop --timeout 1 {id}"))?;
    ensure!(crictl.run("ps -q --no-trunc")?.trim().is_empty(), "ps shows a stopped container");
    ensure!(crictl.json(&format!("inspect {id}"))?["status"]["state"] == "CONTAINER_EXITED");
    crictl.run(&format!("rm {id}"))?;
    crictl.run(&format!("stopp {pod_id}"))?;
    ensure!(crictl.json(&format!("inspectp {pod_id}"))?["status"]["state"] == "SANDBOX_NOTREADY");
    crictl.run(&format!("rmp {pod_id}"))?;
    ensure!(crictl.run("pods -q")?.trim().is_empty(), "pods shows a removed pod");
    ensure!(crictl.run(&format!("inspectp {pod_id}")).is_err(), "inspectp shows a removed pod");
    case.close()
}

/// `pull`, `images`, `inspecti`, `imagefsinfo`, `rmi`.
fn images(crictl: &Crictl) -> Result<()> {
    let pulled = crictl.run(&format!("pull {PAUSE}"))?;
    ensure!(pulled.contains("Image is up to date for"), "{pulled}");
    let listed = || -> Result<bool> {
        let images = crictl.json("images -o json")?["images"].as_array().cloned().unwrap_or_default();
        Ok(images.iter().any(|image| image["repoTags"][0] == PAUSE))
    };
    ensure!(listed()?, "images does not show what was pulled");
    ensure!(crictl.run("images")?.contains("registry.k8s.io/pause"));
    ensure!(crictl.json(&format!("inspecti {PAUSE}"))?["status"]["uid"]["value"] == "65535");
    crictl.run("imagefsinfo")?;
    crictl.run(&format!("rmi {PAUSE}"))?;
    ensure!(!listed()?, "rmi left the image");
    Ok(())
}

/// What can be asked of a running container: `ps`, `pods`, `inspect`, `inspectp`, `exec -s`, `logs`, `stats`, `statsp`.
fn running(crictl: &Crictl, pod_id: &str, id: &str) -> Result<()> {
    let listed = crictl.run("ps")?;
    ensure!(listed.contains("speaker") && listed.contains("Running"), "{listed}");
    let pods = crictl.run("pods")?;
    ensure!(pods.contains("web") && pods.contains("shop") && pods.contains("Ready"), "{pods}");
    let inspected = crictl.json(&format!("inspect {id}"))?;
    ensure!(inspected["status"]["labels"]["app"] == "speaker", "{inspected}");
    ensure!(inspected["status"]["state"] == "CONTAINER_RUNNING", "{inspected}");
    let sandbox = crictl.json(&format!("inspectp {pod_id}"))?;
    ensure!(
        sandbox["status"]["network"]["ip"].as_str().is_some_and(|ip| ip.starts_with("10.88.")),
        "{sandbox}"
    );
    let exec = crictl.run(&format!("exec -s {id} cat /proc/self/status"))?;
    ensure!(exec.contains("Name:\tcat"), "{exec}");

    let follower = crictl.follow(&format!("logs -f {id}"))?;
    wait::until("lines from logs -f", Duration::from_secs(20), || {
        let text = std::fs::read_to_string(&crictl.log)?;
        ensure!(text.lines().filter(|line| line.starts_with("line ")).count() > 20, "{text}");
        Ok(())
    })?;
    drop(follower);
    let tail = crictl.run(&format!("logs --tail 2 {id}"))?;
    ensure!(tail.lines().count() == 2 && tail.starts_with("line "), "{tail}");

    let stats = crictl.json("stats -o json")?;
    ensure!(stats["stats"][0]["attributes"]["id"] == id, "{stats}");
    let usage = &stats["stats"][0]["memory"]["workingSetBytes"]["value"];
    ensure!(
        usage.as_str().and_then(|text| text.parse::<u64>().ok()).is_some_and(|bytes| bytes > 0),
        "{stats}"
    );
    let pod_stats = crictl.json("statsp -o json")?;
    ensure!(pod_stats["stats"][0]["attributes"]["id"] == pod_id, "{pod_stats}");
    Ok(())
}

/// What crictl changes and measures: `update`, `inspect`, `info`, `metricdescs`, `metricsp`, `update-runtime-config`.
#[tokio::test(flavor = "multi_thread")]
async fn crictl_updates_and_measures() -> Result<()> {
    let Some(case) = Case::open("crictl_updates_and_measures", Setup::default()).await? else {
        return Ok(());
    };
    if !case.is_berth() {
        return case.close();
    }
    let (pod_id, id) = case.sleeper(&case.cri.pod("typed")).await?;
    let log = case.node.dirs().top().join("follow.log");
    let crictl = Crictl { node: &case.node, path: paths::peer("crictl")?, log };
    crictl.run(&format!("update --memory 134217728 --cpu-share 300 {id}"))?;
    let cgroup = Cgroup::of(&case.cri, &id).await?;
    let memory = cgroup.read(("memory", "memory.limit_in_bytes"), "memory.max")?;
    let shares = cgroup.read(("cpu", "cpu.shares"), "cpu.weight")?;
    ensure!(memory == "134217728" && shares == if is_v2() { "12" } else { "300" }, "{memory} {shares}");
    let inspected = crictl.json(&format!("inspect {id}"))?;
    let shown = &inspected["status"]["resources"]["linux"];
    ensure!(shown["memoryLimitInBytes"] == "134217728" && shown["cpuShares"] == "300", "{shown}");
    ensure!(inspected["info"]["pid"].as_i64().is_some_and(|pid| pid > 0), "{inspected}");
    ensure!(
        inspected["info"]["sandboxID"] == pod_id && inspected["info"]["runtimeSpec"]["process"].is_object()
    );
    ensure!(inspected["status"]["stopSignal"] == "SIGTERM", "{}", inspected["status"]["stopSignal"]);
    let sandbox = crictl.json(&format!("inspectp {pod_id}"))?;
    ensure!(sandbox["info"]["pid"].as_i64().is_some_and(|pid| pid > 0), "{sandbox}");
    let info = crictl.json("info")?;
    ensure!(info["config"]["stateDir"].is_string() && info["lastCNILoadStatus"] == "OK", "{info}");
    let descriptors = crictl.json("metricdescs")?;
    ensure!(descriptors["descriptors"].as_array().is_some_and(|all| all.len() >= 48), "{descriptors}");
    let metrics = crictl.json("metricsp")?;
    ensure!(metrics["podMetrics"][0]["podSandboxId"] == pod_id, "{metrics}");
    crictl.run("update-runtime-config --pod-cidr 10.244.7.0/24")?;
    ensure!(crictl.json("info")?["config"]["podCIDR"] == "10.244.7.0/24");
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

/// `crictl events`, from the first pod on that it was there for.
#[tokio::test(flavor = "multi_thread")]
async fn crictl_tells_events() -> Result<()> {
    let Some(case) = Case::open("crictl_tells_events", Setup::default()).await? else { return Ok(()) };
    let log = case.node.dirs().top().join("events.log");
    let crictl = Crictl { node: &case.node, path: paths::peer("crictl")?, log };
    let listener = crictl.follow("events")?;
    let told = |kind: &str, id: &str| -> Result<bool> {
        let text = std::fs::read_to_string(&crictl.log)?;
        // Warnings come first.
        let text = &text[text.find('{').unwrap_or(text.len())..];
        let mut events = serde_json::Deserializer::from_str(text).into_iter::<Value>().map_while(Result::ok);
        Ok(events.any(|event| event["containerEventType"] == kind && event["containerId"] == id))
    };
    // Whether it listens yet nobody can ask: it does when it tells of a pod, however late.
    let pods = Mutex::new(Vec::new());
    wait::until_async("the first event", Duration::from_secs(60), || async {
        let pod_id = case.cri.run_pod(&case.cri.pod("first")).await?;
        case.cri.end_pod(&pod_id).await?;
        let mut pods = pods.lock().map_err(|_| anyhow!("a round has panicked"))?;
        pods.push(pod_id);
        ensure!(pods.iter().any(|pod_id| told("CONTAINER_DELETED_EVENT", pod_id).unwrap_or(false)));
        Ok(())
    })
    .await?;
    let (pod_id, id) = case.sleeper(&case.cri.pod("told")).await?;
    case.cri.stop(&id, 0).await?;
    case.cri.remove(&id).await?;
    case.cri.end_pod(&pod_id).await?;
    for kind in ["CREATED", "STARTED", "STOPPED", "DELETED"] {
        let kind = format!("CONTAINER_{kind}_EVENT");
        wait::until(&kind, Duration::from_secs(20), || {
            ensure!(told(&kind, &id)?, "{}", std::fs::read_to_string(&crictl.log)?);
            Ok(())
        })?;
    }
    drop(listener);
    case.close()
}

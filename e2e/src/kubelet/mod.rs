//! A real kubelet on a node: standalone, so its pods are the manifests of a directory and it speaks to no API server.
//!
//! It gets what it would take from the machine from the node instead: `/var`, a cgroup root, the kernel's settings.
//! What the manifests hold is the tests' affair.

mod endpoints;
pub mod pod;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::exec::{Program, Running};
use crate::http::Origin;
use crate::node::{Dirs, Node};
use crate::registry::loopback;
use crate::tls::Files;
use crate::{paths, wait};

/// What the kubelet appends to the name of a static pod.
const NODE_NAME: &str = "kubelet-node";
/// The node's own address, on its loopback link.
const NODE_IP: &str = "10.89.0.1";
/// The shortest time between two starts of a crashing container.
pub const BACK_OFF: Duration = Duration::from_secs(3);
/// Where the kubelet shows pods and their states to anybody, without TLS.
const READ_ONLY_PORT: u16 = 10255;

/// The kernel's settings that a kubelet wants, below `/proc/sys`. A node shows them in the place of the machine's
/// own, which stay as they are.
const WANTED_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A running kubelet; ended by SIGKILL when dropped. What it leaves then goes with the node.
#[derive(Debug)]
pub struct Kubelet {
    running: Running,
    program: Program,
    top: PathBuf,
    logs: PathBuf,
    origin: Origin,
}

impl Kubelet {
    /// Starts a kubelet on the node's daemon and waits until it is healthy.
    pub fn start(node: &Node) -> Result<Self> {
        let top = node.dirs().top().join("kubelet");
        for dir in ["manifests", "root", "pki", "plugins", "settings"] {
            std::fs::create_dir_all(top.join(dir))?;
        }
        make_private(node, &top)?;
        make_cgroups(node)?;
        let config = top.join("config.json");
        let files = Files::write(&top.join("pki"))?;
        std::fs::write(&config, serde_json::to_vec_pretty(&configuration(node.dirs(), &top, &files))?)?;
        std::fs::write(top.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        let origin = Origin { address: loopback(READ_ONLY_PORT), holder: Some(node.holder_pid()) };
        let program = node
            .program(paths::peer("kubelet")?)
            .arg("--config")
            .arg(config)
            .arg("--root-dir")
            .arg(top.join("root"))
            .arg("--cert-dir")
            .arg(top.join("pki"))
            .args(["--hostname-override", NODE_NAME, "--node-ip", NODE_IP])
            // The authorities that it trusts: the streaming server's certificate is verified by them.
            .env("SSL_CERT_FILE", &files.certificate);
        let running = program.start(&top.join("log"))?;
        let mut kubelet = Self { running, program, top, logs: node.dirs().logs(), origin };
        kubelet.wait_healthy()?;
        Ok(kubelet)
    }

    /// Ends the kubelet by SIGKILL and starts another one over what it left.
    pub fn restart(&mut self) -> Result<()> {
        self.running.signal(Signal::KILL)?;
        self.running.wait(Duration::from_secs(10))?;
        self.running = self.program.start(&self.top.join("log"))?;
        self.wait_healthy()
    }

    fn wait_healthy(&mut self) -> Result<()> {
        wait::until("a healthy kubelet", Duration::from_secs(60), || {
            self.running.alive().with_context(|| self.complaints().join("\n"))?;
            self.get("/healthz").map(drop)
        })
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        let answer = self.origin.request("GET", path, None)?;
        ensure!(answer.status == 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        Ok(answer.body)
    }

    /// Puts a pod's manifest where the kubelet finds it, in the place of an older one of that name.
    pub fn apply(&self, manifest: &Value) -> Result<()> {
        let name = manifest["metadata"]["name"].as_str().context("the manifest has no name")?;
        // Written aside first: the kubelet must not read half of it. It passes over names with a dot in front.
        let aside = self.manifest(&format!(".{name}"));
        std::fs::write(&aside, serde_json::to_vec_pretty(manifest)?)?;
        std::fs::rename(aside, self.manifest(name))?;
        Ok(())
    }

    /// Takes a pod's manifest away.
    pub fn remove(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.manifest(name)).with_context(|| format!("remove the manifest {name}"))
    }

    /// All pods with their states, as the kubelet shows them.
    pub fn pods(&self) -> Result<Vec<Value>> {
        let mut list: Value = serde_json::from_slice(&self.get("/pods")?).context("read the pods")?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _none => Vec::new(),
        })
    }

    /// What node and pods use, by the runtime's numbers.
    pub fn statistics(&self) -> Result<Value> {
        serde_json::from_slice(&self.get("/stats/summary")?).context("read the statistics")
    }

    /// The pod of a manifest.
    pub fn pod(&self, name: &str) -> Result<Value> {
        let name = format!("{name}-{NODE_NAME}");
        let found = self.pods()?.into_iter().find(|pod| pod["metadata"]["name"] == *name);
        found.with_context(|| format!("the kubelet has no pod {name}"))
    }

    /// Looks at the pod of a manifest until `condition` gives a value.
    pub fn until<T>(
        &self,
        name: &str,
        deadline: Duration,
        condition: impl Fn(&Value) -> Result<T>,
    ) -> Result<T> {
        wait::until(&format!("what is waited for of pod {name}"), deadline, || {
            let pod = self.pod(name)?;
            condition(&pod).with_context(|| pod["status"].to_string())
        })
    }

    /// Where the logs of one container of a pod are: a file for each start, and what was rotated.
    #[must_use]
    pub fn log_dir(&self, pod: &Value, container: &str) -> PathBuf {
        let of = |key: &str| pod["metadata"][key].as_str().unwrap_or_default();
        self.logs.join(format!("{}_{}_{}", of("namespace"), of("name"), of("uid"))).join(container)
    }

    /// Directories of pods that the kubelet still has: volumes and logs.
    pub fn pod_dirs(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for dir in [self.top.join("root/pods"), self.logs.clone()] {
            for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
                found.push(entry?.path());
            }
        }
        Ok(found)
    }

    /// Lines of its log that are errors or warnings.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.top.join("log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(['E', 'W', 'F'])).map(str::to_owned).collect()
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.top.join("manifests").join(name).with_extension("json")
    }
}

/// The kubelet's configuration: quick to notice, content with cgroup v1 and with a machine that others use too.
fn configuration(dirs: &Dirs, top: &Path, files: &Files) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", dirs.socket().display()),
        "staticPodPath": top.join("manifests"),
        "podLogsDir": dirs.logs(),
        "volumePluginDir": top.join("plugins"),
        "resolvConf": top.join("resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/berth-{}", dirs.id()),
        "failCgroupV1": false,
        "failSwapOn": false,
        "protectKernelDefaults": true,
        "makeIPTablesUtilChains": false,
        // Statistics from the runtime alone, not from the kubelet's own look at cgroups.
        "featureGates": {"PodAndContainerStatsFromCRI": true},
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "address": "127.0.0.1",
        "port": endpoints::PORT,
        "tlsCertFile": files.certificate,
        "tlsPrivateKeyFile": files.key,
        "readOnlyPort": READ_ONLY_PORT,
        "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "evictionHard": {"memory.available": "1Mi"},
        "imageGCHighThresholdPercent": 100,
        "containerLogMaxSize": "16Ki",
        "containerLogMaxFiles": 10,
        "containerLogMonitorInterval": "3s",
        "crashLoopBackOff": {"maxContainerRestartPeriod": format!("{}s", BACK_OFF.as_secs())},
    })
}

/// Puts the node's own in the place of what a kubelet takes from the machine wherever it is told to live.
fn make_private(node: &Node, top: &Path) -> Result<()> {
    for dir in ["/var/lib", "/var/log"] {
        node.program("mount").args(["-t", "tmpfs", "kubelet", dir]).silent()?;
    }
    for (setting, value) in WANTED_SETTINGS {
        let file = top.join("settings").join(setting.replace('/', "."));
        std::fs::write(&file, format!("{value}\n"))?;
        node.program("mount").arg("--bind").arg(file).arg(Path::new("/proc/sys").join(setting)).silent()?;
    }
    node.program("ip").args(["address", "add", NODE_IP, "dev", "lo"]).silent()
}

/// Makes the cgroups that a kubelet keeps for as long as it lives, in each hierarchy: its root and one for each class
/// of pods.
fn make_cgroups(node: &Node) -> Result<()> {
    // What the node does not see its holder could not remove.
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", node.holder_pid()))?;
    let hierarchies = mounts.lines().filter(|line| line.contains(" - cgroup"));
    for hierarchy in hierarchies.filter_map(|line| line.split(' ').nth(4)).map(Path::new) {
        let top = hierarchy.join(format!("berth-{}", node.dirs().id()));
        for name in ["", "kubepods", "kubepods/burstable", "kubepods/besteffort"] {
            let dir = top.join(name);
            std::fs::create_dir_all(&dir).with_context(|| format!("make the cgroup {}", dir.display()))?;
            // Of these a new cgroup has none.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = std::fs::read(hierarchy.join(file)) {
                    std::fs::write(dir.join(file), all)?;
                }
            }
        }
    }
    Ok(())
}

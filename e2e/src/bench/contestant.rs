//! One contestant: a node with its daemon, a client of it, its meter, and the state that it comes back to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::cri as api;
use serde::Serialize;
use tonic::Status;

use crate::cri::{Cri, container};
use crate::daemon::{Endpoint, Setup};
use crate::image::set::{BUSYBOX, PAUSE};
use crate::leaks::Snapshot;
use crate::node::Node;
use crate::{paths, wait};

use super::by_hand::ByHand;
use super::meter::{Cpu, Meter};
use super::options::Who;

/// How long a node may take to come to rest after a round.
const REST: Duration = Duration::from_secs(60);
/// How often containerd is asked to end something, and the pause between, which counts as its own.
const TRIES: usize = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);
/// Seconds that a container has to follow its stop signal.
pub const GRACE: i64 = 10;

/// A contestant, ready to be measured.
pub struct Contestant {
    /// Which one.
    pub who: Who,
    /// A client of its daemon.
    pub cri: Cri,
    /// Its books.
    pub meter: Meter,
    node: Node,
    rest: Rest,
    before: Snapshot,
    failures: RefCell<Vec<Failure>>,
}

/// A call that the reference failed, and that was made again.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Whose.
    pub contestant: Who,
    /// What it answered.
    pub answer: String,
}

/// What a node has when nothing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rest {
    processes: usize,
    links: usize,
}

/// A pod and its container, for their whole life.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The pod's id.
    pub id: String,
    /// Its container's id.
    pub container: String,
}

/// What a step took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lap {
    /// Wall time, milliseconds.
    pub wall: f64,
    /// CPU time of the node, milliseconds.
    pub cpu: Cpu,
}

impl Contestant {
    /// Starts a node, pulls the images, and runs one pod that is not counted.
    pub async fn open(who: Who) -> Result<Self> {
        let endpoint = if who == Who::Containerd { Endpoint::Containerd } else { Endpoint::Berth };
        let default_handler = who.handler().to_owned();
        let node = Node::start(Setup { endpoint, default_handler, subnet: (90, 0), ..Setup::default() })
            .with_context(|| format!("start the node of {}", who.label()))?;
        let meter = Meter::install(&node)?;
        let cri = node.cri().await?;
        for image in [PAUSE, BUSYBOX] {
            cri.pull(image).await.with_context(|| format!("pull {image}"))?;
        }
        let rest = Rest { processes: 1, links: 0 };
        let before = Snapshot::default();
        let failures = RefCell::default();
        let mut contestant = Self { who, cri, meter, node, rest, before, failures };
        contestant.warm_up().await.with_context(|| format!("the first pod of {}", who.label()))?;
        Ok(contestant)
    }

    /// The first pod makes what all share (bridge, tables, parent cgroups): it is run before anything is counted.
    async fn warm_up(&mut self) -> Result<()> {
        let pod = self.sleeper("warm-up").await?;
        let output = self.cri.exec(&pod.container, &["/bin/true"], 10).await?;
        ensure!(output.code == 0, "/bin/true ended with {output:?}");
        self.end(&pod).await?;
        self.rest.links = wait::until("the end of the first pod's link", REST, || {
            let links = self.links()?;
            ensure!(links.veths == 0, "{} veths", links.veths);
            Ok(links.all)
        })?;
        self.settle()?;
        self.before = self.node.snapshot()?;
        Ok(())
    }

    /// Waits until the processes and links of the last round are gone, so that they burden nobody else's.
    pub fn settle(&self) -> Result<()> {
        wait::until("a node at rest", REST, || {
            let now = Rest { processes: self.meter.processes()?.len(), links: self.links()?.all };
            ensure!(now == self.rest, "{now:?}, at rest {:?}", self.rest);
            Ok(())
        })
    }

    /// Checks that nothing is left, and ends the node. Gives the calls that had to be made again.
    pub fn close(self) -> Result<Vec<Failure>> {
        self.node.expect_no_leaks(&self.before).with_context(|| format!("after {}", self.who.label()))?;
        self.node.end();
        Ok(self.failures.into_inner())
    }

    /// Ends something as a kubelet does, who asks again where containerd fails (its 1.6 answers `ttrpc: closed` where a
    /// container ends by itself meanwhile). Each failure is noted. Berth has one try.
    pub async fn insist<T>(&self, call: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
        for _ in 1..TRIES {
            match call().await {
                Err(status) if self.who == Who::Containerd => {
                    let answer = status.message().to_owned();
                    self.failures.borrow_mut().push(Failure { contestant: self.who, answer });
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                answer => return answer,
            }
        }
        call().await
    }

    /// A pod's configuration below the metered cgroup.
    #[must_use]
    pub fn pod(&self, name: &str) -> api::PodSandboxConfig {
        let mut pod = self.cri.pod(name);
        pod.linux.get_or_insert_default().cgroup_parent = self.meter.pods_parent();
        pod
    }

    /// Runs a pod whose container sleeps and has a shell beside it.
    pub async fn sleeper(&self, name: &str) -> Result<Pod> {
        let mut config = self.pod(name);
        dress_pod(&mut config);
        let id = self.cri.run_pod(&config).await.with_context(|| format!("run pod {name}"))?;
        let mut command = container("sleeper", BUSYBOX, &["/bin/sleep", "100000"]);
        dress_container(&mut command, &config);
        let container = self.cri.launch(&id, &command, &config).await?;
        Ok(Pod { id, container })
    }

    /// Stops and removes a pod and its container, which gets no time to end by itself.
    pub async fn end(&self, pod: &Pod) -> Result<()> {
        self.insist(|| self.cri.stop(&pod.container, 0)).await?;
        self.insist(|| self.cri.remove(&pod.container)).await?;
        self.insist(|| self.cri.end_pod(&pod.id)).await?;
        Ok(())
    }

    /// Does one step with watch and books.
    pub async fn timed<T, E>(&self, step: impl Future<Output = Result<T, E>>) -> Result<(T, Lap)>
    where
        E: Into<anyhow::Error>,
    {
        let (cpu, start) = (self.meter.cpu()?, Instant::now());
        let value = step.await.map_err(Into::into)?;
        let wall = start.elapsed().as_secs_f64() * 1e3;
        Ok((value, Lap { wall, cpu: self.meter.cpu()?.since(cpu) }))
    }

    /// Waits until an [`obedient`] container would notice its stop signal. Outside of all that is timed.
    pub async fn obeys(&self, container: &str) -> Result<()> {
        wait::until_async("a container that listens", REST, || async {
            ensure!(self.meter.is_obedient(container, "pause"), "it does not listen yet");
            Ok(())
        })
        .await
    }

    /// The OCI runtime as the monitor runs it, to be run by hand; none where its state is the daemon's secret.
    pub fn runtime_by_hand(&self) -> Result<Option<ByHand>> {
        if self.who == Who::Containerd {
            return Ok(None);
        }
        let name = self.who.handler();
        let path = paths::in_path(name).with_context(|| format!("{name} is not installed"))?;
        let root = self.node.dirs().state().join("oci").join(name);
        ByHand::new(&path, &root).map(Some)
    }

    fn links(&self) -> Result<Links> {
        let table = std::fs::read_to_string(format!("/proc/{}/net/dev", self.node.holder_pid()))?;
        let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
        let (mut all, mut veths) = (0, 0);
        for name in names {
            all += 1;
            veths += usize::from(name.starts_with("veth"));
        }
        Ok(Links { all, veths })
    }
}

struct Links {
    all: usize,
    veths: usize,
}

/// Gives a pod the labels and annotations that a kubelet gives it: they are in every list.
pub fn dress_pod(pod: &mut api::PodSandboxConfig) {
    let metadata = pod.metadata.clone().unwrap_or_default();
    pod.labels = pairs([
        ("app", "bench"),
        ("io.kubernetes.pod.name", &metadata.name),
        ("io.kubernetes.pod.namespace", &metadata.namespace),
        ("io.kubernetes.pod.uid", &metadata.uid),
    ]);
    pod.annotations = pairs([
        ("kubernetes.io/config.seen", "2026-01-01T00:00:00.000000000Z"),
        ("kubernetes.io/config.source", "api"),
    ]);
}

/// The same for a container of that pod.
pub fn dress_container(config: &mut api::ContainerConfig, pod: &api::PodSandboxConfig) {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let name = config.metadata.clone().unwrap_or_default().name;
    config.labels = pairs([
        ("io.kubernetes.container.name", &name),
        ("io.kubernetes.pod.name", &metadata.name),
        ("io.kubernetes.pod.namespace", &metadata.namespace),
        ("io.kubernetes.pod.uid", &metadata.uid),
    ]);
    config.annotations = pairs([
        ("io.kubernetes.container.hash", "5a4d1ad1"),
        ("io.kubernetes.container.restartCount", "0"),
        ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
        ("io.kubernetes.container.terminationMessagePolicy", "File"),
        ("io.kubernetes.pod.terminationGracePeriod", "30"),
    ]);
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Configuration of a container that sleeps, and ends at once when it is told to; see [`Contestant::obeys`].
#[must_use]
pub fn obedient() -> api::ContainerConfig {
    container("obedient", PAUSE, &[])
}

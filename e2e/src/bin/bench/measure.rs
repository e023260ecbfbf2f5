//! One contender: its node, and what was measured on it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{Cri, container};
use e2e::daemon::Setup;
use e2e::image::set::BUSYBOX;
use e2e::processes::pss_kib;
use proto::cri as api;

/// Values by the name of what was measured.
pub type Samples = BTreeMap<&'static str, Vec<f64>>;

/// A runtime that is measured.
pub struct Contender {
    /// What it is, for people.
    pub name: &'static str,
    case: Case,
    samples: Samples,
    counter: usize,
}

impl Contender {
    /// Starts its node and gives its daemon a cgroup that counts CPU for the daemon and all that it starts.
    pub async fn start(name: &'static str, setup: Setup) -> Result<Self> {
        let case = Case::open(name, setup).await?.context("this machine cannot run it")?;
        let daemon = case.node.daemon_pid().context("its daemon is not running")?;
        std::fs::create_dir_all(cpu_group(&case))?;
        std::fs::write(format!("{}/cgroup.procs", cpu_group(&case)), daemon.to_string())?;
        Ok(Self { name, case, samples: Samples::new(), counter: 0 })
    }

    /// Lives of pods, one after another.
    pub async fn serial(&mut self, pods: usize) -> Result<()> {
        let cpu = self.cpu()?;
        for _ in 0..pods {
            let pod = self.next_pod();
            let life = live(&self.case.cri, &pod).await?;
            self.add("start one pod, ms", ms(life.start));
            self.add("stop and remove it, ms", ms(life.end));
        }
        let used = self.cpu()? - cpu;
        self.add("CPU of a pod's life, ms", ms(used) / count(pods));
        Ok(())
    }

    /// Lives of pods, all at once.
    pub async fn at_once(&mut self, pods: usize) -> Result<()> {
        let cpu = self.cpu()?;
        let begun = Instant::now();
        let lives: Vec<_> = (0..pods)
            .map(|_| {
                let (cri, pod) = (self.case.cri.clone(), self.next_pod());
                tokio::spawn(async move { live(&cri, &pod).await })
            })
            .collect();
        for life in lives {
            life.await??;
        }
        self.add("ten pods at once, whole lives, ms", ms(begun.elapsed()));
        let used = self.cpu()? - cpu;
        self.add("CPU of a pod's life, ten at once, ms", ms(used) / count(pods));
        Ok(())
    }

    /// Commands in a running container.
    pub async fn execs(&mut self, times: usize) -> Result<()> {
        let pod = self.next_pod();
        let (pod_id, id) = self.case.sleeper(&pod).await?;
        let cpu = self.cpu()?;
        for _ in 0..times {
            let begun = Instant::now();
            let output = self.case.cri.exec(&id, &["true"], 10).await?;
            ensure!(output.code == 0, "true ended with {output:?}");
            self.add("ExecSync of true, ms", ms(begun.elapsed()));
        }
        let used = self.cpu()? - cpu;
        self.add("CPU of an ExecSync, ms", ms(used) / count(times));
        self.case.cri.end_pod(&pod_id).await?;
        Ok(())
    }

    /// Memory of the daemon, and of what supervises each pod: everything of the node but the containers' own processes.
    pub async fn memory(&mut self, pods: usize) -> Result<()> {
        let mut ids = Vec::new();
        for _ in 0..pods {
            let pod = self.next_pod();
            ids.push(self.case.sleeper(&pod).await?.0);
        }
        let own = self.case.node.own_pids();
        let mut supervision = 0;
        for (pid, line) in self.case.node.ancestry().processes()? {
            if !own.contains(&pid) && !line.starts_with("sleep ") {
                supervision += pss_kib(pid)?;
            }
        }
        let daemon = self.case.node.daemon_pid().context("its daemon is not running")?;
        #[allow(clippy::cast_precision_loss, reason = "kilobytes of a process")]
        {
            self.add("supervision of a pod, kB Pss", supervision as f64 / count(pods));
            self.add("daemon, kB Pss", pss_kib(daemon)? as f64);
        }
        for id in ids {
            self.case.cri.end_pod(&id).await?;
        }
        Ok(())
    }

    /// Ends the node and gives what was measured.
    pub fn end(self) -> (&'static str, Samples) {
        self.case.node.end();
        (self.name, self.samples)
    }

    fn next_pod(&mut self) -> api::PodSandboxConfig {
        self.counter += 1;
        let mut pod = self.case.cri.pod(&format!("p{}", self.counter));
        pod.linux.get_or_insert_default().cgroup_parent = format!("/berth-{}", self.case.node.dirs().id());
        pod
    }

    fn cpu(&self) -> Result<Duration> {
        let usage = std::fs::read_to_string(format!("{}/cpuacct.usage", cpu_group(&self.case)))?;
        Ok(Duration::from_nanos(usage.trim().parse()?))
    }

    fn add(&mut self, what: &'static str, value: f64) {
        self.samples.entry(what).or_default().push(value);
    }
}

struct Life {
    start: Duration,
    end: Duration,
}

/// Run, create, start, then stop and remove.
async fn live(cri: &Cri, pod: &api::PodSandboxConfig) -> Result<Life> {
    let begun = Instant::now();
    let pod_id = cri.run_pod(pod).await?;
    let id = cri.launch(&pod_id, &container("main", BUSYBOX, &["sleep", "100000"]), pod).await?;
    let start = begun.elapsed();
    let begun = Instant::now();
    cri.stop(&id, 0).await?;
    cri.remove(&id).await?;
    cri.end_pod(&pod_id).await?;
    Ok(Life { start, end: begun.elapsed() })
}

/// The parent of the node's pods, in the hierarchy that accounts CPU.
fn cpu_group(case: &Case) -> String {
    format!("/sys/fs/cgroup/cpuacct/berth-{}", case.node.dirs().id())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[allow(clippy::cast_precision_loss, reason = "a small number of pods")]
fn count(number: usize) -> f64 {
    number as f64
}

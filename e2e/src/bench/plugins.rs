//! CNI plugins by three makers on one list: a bridge, addresses of host-local, and two published ports. Each maker
//! has a host of its own; rounds are interleaved.
//!
//! Everything that a maker's plugins start is born in a cgroup of the maker's, so that CPU time counts also what goes
//! on after a plugin has answered.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::stats::{Ratio, median, quantile, ratio};
use crate::cni::{Attached, Host, Maker, Network, Plugins, Pod};
use crate::{paths, wait};

const HIERARCHY: &str = "/sys/fs/cgroup/cpuacct";
/// Who is measured, the one that others are compared with first.
const MAKERS: [Maker; 3] = [Maker::Reference, Maker::Ours, Maker::Debian];

/// One pod's ADD and DEL, milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    add: f64,
    del: f64,
}

/// One round of one maker: wall of each pod, CPU of the average pod.
#[derive(Clone, Debug, Default)]
struct Round {
    pods: Vec<Sample>,
    cpu: Sample,
}

/// What a maker's rounds come to, milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    /// Who.
    pub maker: &'static str,
    /// Median, 90 % and 99 % of ADD.
    pub add: [f64; 3],
    /// The same of DEL.
    pub del: [f64; 3],
    /// CPU of one ADD and of one DEL.
    pub cpu: [f64; 2],
    /// Programs that one ADD and DEL start beyond the plugins of the list; none where that cannot be counted.
    pub execs: Option<usize>,
    /// Ratios to the reference: ADD, DEL, CPU of ADD, CPU of DEL.
    pub ratios: Option<[Ratio; 4]>,
    /// The last of many pods against the first: ADD and DEL.
    pub growth: Option<[f64; 2]>,
}

/// What the family found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Found {
    /// A column for each maker.
    pub columns: Vec<Column>,
    /// How many pods [`Column::growth`] is about.
    pub crowd: usize,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Interleaved rounds.
    pub rounds: usize,
    /// Pods of one maker in one round.
    pub pods: usize,
    /// Pods that are there at the same time in the end.
    pub crowd: usize,
}

/// Measures.
pub fn measure(extent: Extent) -> Result<Found> {
    let stands = MAKERS.into_iter().map(Stand::open).collect::<Result<Vec<Stand>>>()?;
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); stands.len()];
    let mut order: Vec<usize> = (0..stands.len()).collect();
    for _ in 0..extent.rounds {
        for at in &order {
            let pods = extent.pods;
            rounds[*at].push(stands[*at].ask(move |bench| bench.round(pods))?);
        }
        // Nobody is always first.
        order.rotate_left(1);
    }
    let mut columns = Vec::new();
    for (at, stand) in stands.iter().enumerate() {
        let execs = stand.ask(|bench| bench.execs())?;
        let crowd = extent.crowd;
        // The others' figures are known to grow; they would take minutes.
        let growth = match MAKERS[at] {
            Maker::Ours => Some(stand.ask(move |bench| bench.growth(crowd))?),
            Maker::Reference | Maker::Debian => None,
        };
        columns.push(column(MAKERS[at], &rounds[0], &rounds[at], (execs, growth)));
    }
    Ok(Found { columns, crowd: extent.crowd })
}

fn column(
    maker: Maker,
    reference: &[Round],
    own: &[Round],
    (execs, growth): (Option<usize>, Option<[f64; 2]>),
) -> Column {
    let all =
        |of: fn(&Sample) -> f64| own.iter().flat_map(|round| round.pods.iter().map(of)).collect::<Vec<_>>();
    let spread = |values: &[f64]| [median(values), quantile(values, 0.9), quantile(values, 0.99)];
    let medians = |rounds: &[Round], of: fn(&Sample) -> f64| {
        let each = rounds.iter().map(|round| median(&round.pods.iter().map(of).collect::<Vec<_>>()));
        each.collect::<Vec<f64>>()
    };
    let cpu =
        |rounds: &[Round], of: fn(&Sample) -> f64| rounds.iter().map(|r| of(&r.cpu)).collect::<Vec<f64>>();
    let add: fn(&Sample) -> f64 = |sample| sample.add;
    let del: fn(&Sample) -> f64 = |sample| sample.del;
    let ratios = || {
        Some([
            ratio(&medians(reference, add), &medians(own, add))?,
            ratio(&medians(reference, del), &medians(own, del))?,
            ratio(&cpu(reference, add), &cpu(own, add))?,
            ratio(&cpu(reference, del), &cpu(own, del))?,
        ])
    };
    Column {
        maker: maker.label(),
        add: spread(&all(add)),
        del: spread(&all(del)),
        cpu: [median(&cpu(own, add)), median(&cpu(own, del))],
        execs,
        ratios: if maker == Maker::Reference { None } else { ratios() },
        growth,
    }
}

type Job = Box<dyn FnOnce(&mut Bench<'_>) + Send>;

/// A maker's host on a thread of its own, which does what it is asked.
struct Stand {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Stand {
    fn open(maker: Maker) -> Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let thread = std::thread::spawn(move || Host::with(move |host| Bench::serve(host, maker, &queue)));
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Bench<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = channel();
        let job: Job = Box::new(move |bench| {
            let _ = answer.send(job(bench));
        });
        let gone = || anyhow!("the thread of a maker's host has ended");
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())?
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.jobs = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("bench: {error:#}"),
            Some(Err(_)) => eprintln!("bench: a maker's host panicked"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

/// What is measured on a maker's host.
struct Bench<'a> {
    host: &'a Host,
    network: Network,
    plugins: Plugins,
    cgroup: PathBuf,
    made: usize,
}

impl Bench<'_> {
    fn serve(host: &Host, maker: Maker, queue: &Receiver<Job>) -> Result<()> {
        let name = format!("berth-bench-{}-{}", std::process::id(), maker.label().replace(' ', "-"));
        let cgroup = Path::new(HIERARCHY).join(name);
        std::fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        std::fs::write(cgroup.join("tasks"), &thread).context("move a thread into its cgroup")?;
        let (network, plugins) = (Network::new(&list())?, maker.plugins(host)?);
        let mut bench = Bench { host, network, plugins, cgroup: cgroup.clone(), made: 0 };
        bench.round(1)?;
        queue.iter().for_each(|job| job(&mut bench));
        std::fs::write(Path::new(HIERARCHY).join("tasks"), thread).context("leave the cgroup")?;
        wait::until("the end of what plugins started", Duration::from_secs(10), || {
            std::fs::remove_dir(&cgroup).with_context(|| format!("remove {}", cgroup.display()))
        })
    }

    fn round(&mut self, pods: usize) -> Result<Round> {
        let pods = (0..pods).map(|_| self.pod()).collect::<Result<Vec<Pod>>>()?;
        let (mut samples, mut attached) = (Vec::new(), Vec::new());
        let before = self.cpu()?;
        for pod in &pods {
            let (one, add) = timed(|| self.add(pod))?;
            samples.push(Sample { add, del: 0.0 });
            attached.push(one);
        }
        let between = self.cpu()?;
        for (sample, one) in samples.iter_mut().zip(&attached) {
            ((), sample.del) = timed(|| self.del(one))?;
        }
        self.rest()?;
        let after = self.cpu()?;
        pods.iter().try_for_each(|pod| self.host.end_pod(pod))?;
        let each = pods.len() as f64;
        Ok(Round {
            pods: samples,
            cpu: Sample { add: (between - before) / each, del: (after - between) / each },
        })
    }

    /// The last of so many pods against the first: medians of a few.
    fn growth(&mut self, crowd: usize) -> Result<[f64; 2]> {
        const FEW: usize = 10;
        let first = self.round(FEW)?;
        let pods = (0..crowd).map(|_| self.pod()).collect::<Result<Vec<Pod>>>()?;
        let mut attached = Vec::new();
        for pod in &pods {
            attached.push(self.add(pod)?);
        }
        let last = self.round(FEW)?;
        for (one, pod) in attached.iter().zip(&pods) {
            self.del(one)?;
            self.host.end_pod(pod)?;
        }
        let of =
            |round: &Round, of: fn(&Sample) -> f64| median(&round.pods.iter().map(of).collect::<Vec<_>>());
        let add: fn(&Sample) -> f64 = |sample| sample.add;
        let del: fn(&Sample) -> f64 = |sample| sample.del;
        Ok([of(&last, add) / of(&first, add), of(&last, del) / of(&first, del)])
    }

    /// How many programs one ADD and one DEL start, beyond the plugins that the list names.
    fn execs(&mut self) -> Result<Option<usize>> {
        let Some(strace) = paths::in_path("strace") else { return Ok(None) };
        let dir = self.host.scratch().join("traced");
        std::fs::create_dir_all(&dir)?;
        let log = dir.join("execs");
        let listed: Vec<String> = self.network.list.plugins.iter().map(|conf| conf.plugin.clone()).collect();
        for name in &listed {
            let script = format!(
                "#!/bin/sh\nexec {} -f -qq -A -o {} -e trace=execve -e signal=none {} \n",
                strace.display(),
                log.display(),
                self.plugins.dir.join(name).display()
            );
            let path = dir.join(name);
            std::fs::write(&path, script)?;
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let traced = Plugins { dir, ..self.plugins.clone() };
        let pod = self.pod()?;
        let added = self.network.add(&traced, &pod, "eth0", &ports(self.made))??;
        self.network.del(&traced, added.target())??;
        self.rest()?;
        self.host.end_pod(&pod)?;
        let started = std::fs::read_to_string(&log)?;
        let started =
            started.lines().filter(|line| line.contains("execve(") && line.contains(" = 0")).count();
        Ok(Some(started.saturating_sub(2 * listed.len())))
    }

    fn pod(&mut self) -> Result<Pod> {
        self.made += 1;
        self.host.pod(&format!("pod{}", self.made))
    }

    fn add(&self, pod: &Pod) -> Result<Attached> {
        let number = pod.id.trim_start_matches("pod").parse().unwrap_or(0);
        Ok(self.network.add(&self.plugins, pod, "eth0", &ports(number))??)
    }

    fn del(&self, attached: &Attached) -> Result<()> {
        Ok(self.network.del(&self.plugins, attached.target())??)
    }

    /// Waits until nothing that plugins started runs any more: this thread is alone in its cgroup.
    fn rest(&self) -> Result<()> {
        wait::until("plugins at rest", Duration::from_secs(30), || {
            let tasks = std::fs::read_to_string(self.cgroup.join("tasks"))?;
            if tasks.lines().count() > 1 { bail!("{} tasks", tasks.lines().count()) } else { Ok(()) }
        })
    }

    /// CPU time of the maker's cgroup, milliseconds.
    fn cpu(&self) -> Result<f64> {
        let text = std::fs::read_to_string(self.cgroup.join("cpuacct.usage"))?;
        Ok(text.trim().parse::<u64>()? as f64 / 1e6)
    }
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed().as_secs_f64() * 1e3))
}

fn list() -> Value {
    json!({"cniVersion": "1.0.0", "name": "bench", "plugins": [
        {"type": "bridge", "bridge": "bench0", "isDefaultGateway": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/18"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
    ]})
}

/// Two ports that no other pod has.
fn ports(number: usize) -> Value {
    let port = |protocol: &str| json!({"hostPort": 10000 + number % 50000, "containerPort": 80, "protocol": protocol});
    json!({"portMappings": [port("tcp"), port("udp")]})
}

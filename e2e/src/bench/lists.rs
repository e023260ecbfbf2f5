//! ListContainers and ListPodSandbox with many containers, and the daemon's memory with them.
//!
//! The containers are real and have ended: they are listed like others, and processes would only fill the machine. The
//! clock stops when the whole answer is there, before it is decoded.

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use prost::Message;
use proto::cri as api;

use super::contestant::{Contestant, dress_container, dress_pod};
use super::options::Family::Lists;
use super::progress::Progress;
use super::raw;
use super::sheet::{Metric, Sheet, Unit};
use crate::cri::{container, with_namespaces};
use crate::image::set::BUSYBOX;

/// Containers at which lists are measured.
pub const SIZES: [usize; 3] = [100, 500, 2000];
/// Containers of one pod.
const IN_A_POD: usize = 4;
/// Pods that are made or removed at the same time.
const AT_ONCE: usize = 6;
/// Calls of each kind at each size.
const CALLS: usize = 200;

const GROUP: &str = "lists (four containers in a pod, all ended)";
const CPU_GROUP: &str = "lists, CPU of a call";
const MEMORY_GROUP: &str = "memory with ended containers";

/// ListContainers with 2000.
pub const CONTAINERS_2000: Metric = wall("ListContainers of 2000");
/// ListPodSandbox with 2000 containers in 500 pods.
pub const SANDBOXES_500: Metric = wall("ListPodSandbox of 500");
/// The daemon with 500 containers.
pub const MEMORY_500: Metric = memory("daemon, 500 containers");

/// What is measured at each of [`SIZES`].
const AT: [At; 3] = [
    At {
        containers: wall("ListContainers of 100"),
        sandboxes: wall("ListPodSandbox of 25"),
        containers_cpu: cpu("ListContainers of 100"),
        sandboxes_cpu: cpu("ListPodSandbox of 25"),
        memory: memory("daemon, 100 containers"),
    },
    At {
        containers: wall("ListContainers of 500"),
        sandboxes: wall("ListPodSandbox of 125"),
        containers_cpu: cpu("ListContainers of 500"),
        sandboxes_cpu: cpu("ListPodSandbox of 125"),
        memory: MEMORY_500,
    },
    At {
        containers: CONTAINERS_2000,
        sandboxes: SANDBOXES_500,
        containers_cpu: cpu("ListContainers of 2000"),
        sandboxes_cpu: cpu("ListPodSandbox of 500"),
        memory: memory("daemon, 2000 containers"),
    },
];

struct At {
    containers: Metric,
    sandboxes: Metric,
    containers_cpu: Metric,
    sandboxes_cpu: Metric,
    memory: Metric,
}

const fn wall(name: &'static str) -> Metric {
    Metric { family: Lists, group: GROUP, name, unit: Unit::Wall }
}

const fn cpu(name: &'static str) -> Metric {
    Metric { family: Lists, group: CPU_GROUP, name, unit: Unit::Cpu }
}

const fn memory(name: &'static str) -> Metric {
    Metric { family: Lists, group: MEMORY_GROUP, name, unit: Unit::Memory }
}

/// Fills a node up to each of `sizes`, asks there, and empties it.
pub async fn measure(
    contestant: &Contestant,
    sizes: &[usize],
    sheet: &mut Sheet,
    progress: &mut Progress,
) -> Result<()> {
    let who = contestant.who.label();
    let mut pods = Vec::new();
    for (size, at) in sizes.iter().zip(AT) {
        progress.detail(&format!("{who}: up to {size} containers"));
        let more = (pods.len()..size / IN_A_POD).map(|number| ended_pod(contestant, number));
        let more: Vec<String> = stream::iter(more).buffer_unordered(AT_ONCE).try_collect().await?;
        pods.extend(more);
        contestant.settle()?;
        sheet.add(at.memory, contestant.who, contestant.meter.memory()?.daemon);
        progress.detail(&format!("{who}: lists of {size} containers"));
        ask(contestant, *size, &at, sheet).await?;
    }
    progress.detail(&format!("{who}: removing {} pods", pods.len()));
    let ends = pods.iter().map(|id| contestant.insist(|| contestant.cri.remove_pod(id)));
    stream::iter(ends).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    contestant.settle()
}

async fn ask(contestant: &Contestant, size: usize, at: &At, sheet: &mut Sheet) -> Result<()> {
    let channel = &contestant.cri.channel;
    for _ in 0..CALLS {
        let call = raw::call(channel.clone(), "ListContainers", api::ListContainersRequest::default());
        let (answer, lap) = contestant.timed(call).await?;
        let listed = api::ListContainersResponse::decode(answer)?.containers.len();
        ensure!(listed == size, "{listed} of {size} containers are listed");
        sheet.add(at.containers, contestant.who, lap.wall);
        sheet.add(at.containers_cpu, contestant.who, lap.cpu.stack);
        let call = raw::call(channel.clone(), "ListPodSandbox", api::ListPodSandboxRequest::default());
        let (answer, lap) = contestant.timed(call).await?;
        let listed = api::ListPodSandboxResponse::decode(answer)?.items.len();
        ensure!(listed == size / IN_A_POD, "{listed} of {} pods are listed", size / IN_A_POD);
        sheet.add(at.sandboxes, contestant.who, lap.wall);
        sheet.add(at.sandboxes_cpu, contestant.who, lap.cpu.stack);
    }
    Ok(())
}

/// A stopped pod of ended containers, on the node's network: lists know no other difference.
async fn ended_pod(contestant: &Contestant, number: usize) -> Result<String> {
    let name = format!("listed-{number}");
    let options = api::NamespaceOption {
        network: api::NamespaceMode::Node.into(),
        pid: api::NamespaceMode::Container.into(),
        ..Default::default()
    };
    let mut config = with_namespaces(contestant.pod(&name), options);
    // As a kubelet has it for a pod with the node's name; containerd fails otherwise.
    config.hostname.clear();
    dress_pod(&mut config);
    let id = contestant.cri.run_pod(&config).await.with_context(|| format!("run pod {name}"))?;
    for number in 0..IN_A_POD {
        let mut quick = container(&format!("c{number}"), BUSYBOX, &["/bin/true"]);
        let security = crate::cri::security(&mut quick);
        security.namespace_options.get_or_insert_default().network = api::NamespaceMode::Node.into();
        dress_container(&mut quick, &config);
        contestant.cri.launch(&id, &quick, &config).await?;
    }
    contestant.insist(|| contestant.cri.stop_pod(&id)).await?;
    Ok(id)
}

//! Pods from nothing to nothing: run, create, start, stop, remove. One after another, and ten at once.

use anyhow::{Context, Result};
use futures_util::future::try_join_all;

use super::contestant::{Contestant, GRACE, Lap, Pod, obedient};
use super::options::Family::Scratch;
use super::sheet::{Metric, Sheet, Unit};

/// Pods that live at the same time.
pub const AT_ONCE: usize = 10;

const SERIAL: &str = "one pod after another";
const SERIAL_CPU: &str =
    "one pod after another, CPU (stack: daemon, supervision, OCI runtime, CNI; all: and containers' cgroups)";
const BURST: &str = "ten pods at once";

/// Run, create and start of a pod.
pub const UP: Metric = wall(SERIAL, "run + create + start");
/// A pod's whole life.
pub const LIFE: Metric = wall(SERIAL, "whole life");
/// CPU of a pod's whole life without the containers' cgroups.
pub const CPU_STACK: Metric = cpu(SERIAL_CPU, "whole life, stack");
/// CPU of a pod's whole life.
pub const CPU_ALL: Metric = cpu(SERIAL_CPU, "whole life, all");
/// From the first request to the last of ten running pods.
pub const BURST_UP: Metric = wall(BURST, "ten up");
/// From the first stop to the last of ten removed pods.
pub const BURST_DOWN: Metric = wall(BURST, "ten down");
const BURST_POD_UP: Metric = wall(BURST, "one of them up");
const BURST_POD_DOWN: Metric = wall(BURST, "one of them down");
/// CPU per pod when ten live at once, without the containers' cgroups.
pub const BURST_STACK: Metric = cpu(BURST, "CPU per pod, stack");
const BURST_ALL: Metric = cpu(BURST, "CPU per pod, all");

/// The steps of a pod's life, in order.
const STEPS: [&str; 7] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];
/// How many of them bring the pod up.
const UP_STEPS: usize = 3;

const fn wall(group: &'static str, name: &'static str) -> Metric {
    Metric { family: Scratch, group, name, unit: Unit::Wall }
}

const fn cpu(group: &'static str, name: &'static str) -> Metric {
    Metric { family: Scratch, group, name, unit: Unit::Cpu }
}

/// So many pods one after another.
pub async fn serial(contestant: &Contestant, pods: usize, sheet: &mut Sheet) -> Result<()> {
    let before = contestant.meter.cpu()?;
    for number in 0..pods {
        let laps = life(contestant, &format!("serial-{number}")).await?;
        let who = contestant.who;
        for (step, lap) in STEPS.into_iter().zip(&laps) {
            sheet.add(wall(SERIAL, step), who, lap.wall);
        }
        let walls = |laps: &[Lap]| laps.iter().map(|lap| lap.wall).sum::<f64>();
        sheet.add(UP, who, walls(&laps[..UP_STEPS]));
        sheet.add(LIFE, who, walls(&laps));
        for (step, lap) in STEPS.into_iter().zip(&laps) {
            sheet.add(cpu(SERIAL_CPU, step), who, lap.cpu.stack);
        }
    }
    // What goes on after the last answer belongs to the pods too.
    contestant.settle()?;
    let used = contestant.meter.cpu()?.since(before);
    sheet.add(CPU_STACK, contestant.who, used.stack / pods as f64);
    sheet.add(CPU_ALL, contestant.who, used.all / pods as f64);
    Ok(())
}

/// One pod's life, step by step.
async fn life(contestant: &Contestant, name: &str) -> Result<[Lap; STEPS.len()]> {
    let (cri, config) = (&contestant.cri, contestant.pod(name));
    let (id, run) = contestant.timed(cri.run_pod(&config)).await.with_context(|| format!("run {name}"))?;
    let command = obedient();
    let (container, create) = contestant.timed(cri.create(&id, &command, &config)).await?;
    let ((), start) = contestant.timed(cri.start(&container)).await?;
    contestant.obeys(&container).await?;
    let ((), stop) = contestant.timed(contestant.insist(|| cri.stop(&container, GRACE))).await?;
    let ((), remove) = contestant.timed(contestant.insist(|| cri.remove(&container))).await?;
    let ((), stop_pod) = contestant.timed(contestant.insist(|| cri.stop_pod(&id))).await?;
    let ((), remove_pod) = contestant.timed(contestant.insist(|| cri.remove_pod(&id))).await?;
    Ok([run, create, start, stop, remove, stop_pod, remove_pod])
}

/// Ten pods at once: all up, then all down.
pub async fn burst(contestant: &Contestant, sheet: &mut Sheet) -> Result<()> {
    let (who, before) = (contestant.who, contestant.meter.cpu()?);
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("burst-{number}")).collect();
    let each_up = names.iter().map(|name| contestant.timed(up(contestant, name)));
    let (pods, lap) = contestant.timed(try_join_all(each_up)).await?;
    sheet.add(BURST_UP, who, lap.wall);
    for (pod, _) in &pods {
        contestant.obeys(&pod.container).await?;
    }
    let each_down = pods.iter().map(|(pod, _)| contestant.timed(down(contestant, pod)));
    let (downs, lap) = contestant.timed(try_join_all(each_down)).await?;
    sheet.add(BURST_DOWN, who, lap.wall);
    pods.iter().for_each(|(_, lap)| sheet.add(BURST_POD_UP, who, lap.wall));
    downs.iter().for_each(|(_, lap)| sheet.add(BURST_POD_DOWN, who, lap.wall));
    contestant.settle()?;
    let used = contestant.meter.cpu()?.since(before);
    sheet.add(BURST_STACK, who, used.stack / AT_ONCE as f64);
    sheet.add(BURST_ALL, who, used.all / AT_ONCE as f64);
    Ok(())
}

async fn up(contestant: &Contestant, name: &str) -> Result<Pod> {
    let (cri, config) = (&contestant.cri, contestant.pod(name));
    let id = cri.run_pod(&config).await?;
    let container = cri.launch(&id, &obedient(), &config).await?;
    Ok(Pod { id, container })
}

async fn down(contestant: &Contestant, pod: &Pod) -> Result<()> {
    contestant.insist(|| contestant.cri.stop(&pod.container, GRACE)).await?;
    contestant.insist(|| contestant.cri.remove(&pod.container)).await?;
    contestant.insist(|| contestant.cri.end_pod(&pod.id)).await?;
    Ok(())
}

//! Memory that daemon and supervision take: with one pod, and with many.
//!
//! Each contestant has the machine to itself here: Pss divides what processes share, and a second node's daemon
//! would make the first one's look smaller.

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::contestant::{Contestant, Pod};
use super::options::Family::Density;
use super::progress::Progress;
use super::sheet::{Metric, Sheet, Unit};

/// Pods that are made or removed at the same time.
const AT_ONCE: usize = 5;

const GROUP: &str = "memory";

/// The daemon with one pod.
pub const DAEMON_ONE: Metric = metric("daemon, one pod");
/// The daemon with all pods.
pub const DAEMON_MANY: Metric = metric("daemon, all pods");
const SUPERVISORS: Metric = metric("monitors or shims, all pods");
/// Monitors or shims and pause processes, per pod.
pub const PER_POD: Metric = metric("supervision per pod");
const SANDBOXES: Metric = metric("pause processes, all pods");

const fn metric(name: &'static str) -> Metric {
    Metric { family: Density, group: GROUP, name, unit: Unit::Memory }
}

/// Fills a node with pods, looks, and empties it.
pub async fn measure(
    contestant: &Contestant,
    pods: usize,
    sheet: &mut Sheet,
    progress: &mut Progress,
) -> Result<()> {
    let who = contestant.who;
    let mut made = vec![contestant.sleeper("dense-0").await?];
    sheet.add(DAEMON_ONE, who, contestant.meter.memory()?.daemon);
    progress.detail(&format!("{}: {pods} pods up", who.label()));
    let more = (1..pods).map(|number| async move { contestant.sleeper(&format!("dense-{number}")).await });
    let more: Vec<Pod> = stream::iter(more).buffer_unordered(AT_ONCE).try_collect().await?;
    made.extend(more);
    let memory = contestant.meter.memory()?;
    sheet.add(DAEMON_MANY, who, memory.daemon);
    sheet.add(SUPERVISORS, who, memory.supervisors);
    sheet.add(SANDBOXES, who, memory.sandboxes);
    sheet.add(PER_POD, who, (memory.supervisors + memory.sandboxes) / pods as f64);
    progress.detail(&format!("{}: {pods} pods down", who.label()));
    let ends = made.iter().map(|pod| contestant.end(pod));
    stream::iter(ends).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    contestant.settle()
}

//! Memory that daemon and supervision take: with one pod, and with many.

use anyhow::Result;

use super::contestant::Contestant;
use super::options::Family::Density;
use super::sheet::{Metric, Sheet, Unit};

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

/// Looks at a node with one pod.
pub fn one(contestant: &Contestant, sheet: &mut Sheet) -> Result<()> {
    sheet.add(DAEMON_ONE, contestant.who, contestant.meter.memory()?.daemon);
    Ok(())
}

/// Looks at a node with so many pods.
pub fn many(contestant: &Contestant, pods: usize, sheet: &mut Sheet) -> Result<()> {
    let (who, memory) = (contestant.who, contestant.meter.memory()?);
    sheet.add(DAEMON_MANY, who, memory.daemon);
    sheet.add(SUPERVISORS, who, memory.supervisors);
    sheet.add(SANDBOXES, who, memory.sandboxes);
    sheet.add(PER_POD, who, (memory.supervisors + memory.sandboxes) / pods as f64);
    Ok(())
}

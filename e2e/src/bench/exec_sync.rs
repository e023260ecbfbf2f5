//! ExecSync of /bin/true in a running container: one after another, and ten at once.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;

use super::contestant::{Contestant, Pod};
use super::options::Family::Exec;
use super::sheet::{Metric, Sheet, Unit};
use super::stats::median;

/// Commands that run at the same time.
const AT_ONCE: usize = 10;

const GROUP: &str = "ExecSync /bin/true";

/// One command, nothing beside it.
pub const SERIAL: Metric = metric("one after another", Unit::Wall);
/// CPU of one command, without the container's cgroup.
pub const SERIAL_STACK: Metric = metric("one after another, CPU stack", Unit::Cpu);
const SERIAL_ALL: Metric = metric("one after another, CPU all", Unit::Cpu);
/// The OCI runtime's own `exec` of the same command, run by hand.
const BY_HAND: Metric = metric("the OCI runtime's exec by hand", Unit::Wall);
/// What one command takes beyond that, medians of a round.
pub const OVER: Metric = metric("over exec by hand", Unit::Wall);
const BURST: Metric = metric("ten at once, each", Unit::Wall);
const BURST_STACK: Metric = metric("ten at once, CPU stack each", Unit::Cpu);

const fn metric(name: &'static str, unit: Unit) -> Metric {
    Metric { family: Exec, group: GROUP, name, unit }
}

/// One round: so many commands one after another, then as many ten at a time.
pub async fn round(contestant: &Contestant, pod: &Pod, commands: usize, sheet: &mut Sheet) -> Result<()> {
    let who = contestant.who;
    let before = contestant.meter.cpu()?;
    let mut walls = Vec::new();
    for _ in 0..commands {
        let ((), lap) = contestant.timed(run(contestant, pod)).await?;
        sheet.add(SERIAL, who, lap.wall);
        walls.push(lap.wall);
    }
    let used = contestant.meter.cpu()?.since(before);
    sheet.add(SERIAL_STACK, who, used.stack / commands as f64);
    sheet.add(SERIAL_ALL, who, used.all / commands as f64);
    if let Some(runtime) = contestant.runtime_by_hand()? {
        let by_hand = runtime.program().args(["exec", &pod.container, "/bin/true"]);
        let mut own = Vec::new();
        for _ in 0..commands {
            let start = Instant::now();
            by_hand.silent().context("exec by hand")?;
            own.push(start.elapsed().as_secs_f64() * 1e3);
        }
        own.iter().for_each(|wall| sheet.add(BY_HAND, who, *wall));
        sheet.add(OVER, who, median(&walls) - median(&own));
    }
    let before = contestant.meter.cpu()?;
    let bursts = commands.div_ceil(AT_ONCE);
    for _ in 0..bursts {
        let each = (0..AT_ONCE).map(|_| contestant.timed(run(contestant, pod)));
        try_join_all(each).await?.iter().for_each(|((), lap)| sheet.add(BURST, who, lap.wall));
    }
    let used = contestant.meter.cpu()?.since(before);
    sheet.add(BURST_STACK, who, used.stack / (bursts * AT_ONCE) as f64);
    Ok(())
}

async fn run(contestant: &Contestant, pod: &Pod) -> Result<()> {
    let output = contestant.cri.exec(&pod.container, &["/bin/true"], 30).await?;
    ensure!(output.code == 0, "/bin/true ended with {output:?}");
    Ok(())
}

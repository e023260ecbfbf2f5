//! A node with many pods, made once for all families that want them: memory, statistics, idleness.
//!
//! Each contestant has the machine to itself here: Pss divides what processes share, and a second node's daemon
//! would make the first one's look smaller.

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::contestant::{Contestant, Pod};
use super::options::{Family, Options, Who};
use super::progress::Progress;
use super::sheet::Sheet;
use super::{density, idle, statistics};

/// Pods that are made or removed at the same time.
const AT_ONCE: usize = 5;

/// Whether any family wants many pods of that contestant.
#[must_use]
pub fn wanted(options: &Options, who: Who) -> bool {
    let of_daemon = options.wants(Family::Statistics) || options.wants(Family::Idle);
    options.wants(Family::Density) || of_daemon && options.is_daemon_of_its_own(who)
}

/// Fills a node with pods, measures on the way, and empties it.
pub async fn measure(
    contestant: &Contestant,
    options: &Options,
    sheet: &mut Sheet,
    progress: &mut Progress,
) -> Result<()> {
    let who = contestant.who.label();
    let mut made = Vec::new();
    fill(contestant, &mut made, 1).await?;
    if options.wants(Family::Density) {
        density::one(contestant, sheet)?;
    }
    let pods = options.pods();
    progress.detail(&format!("{who}: {pods} pods up"));
    fill(contestant, &mut made, pods).await?;
    if options.wants(Family::Density) {
        density::many(contestant, pods, sheet)?;
    }
    if options.wants(Family::Statistics) && options.is_daemon_of_its_own(contestant.who) {
        progress.detail(&format!("{who}: statistics of {pods} pods"));
        statistics::measure(contestant, pods, sheet).await?;
    }
    if options.wants(Family::Idle) && options.is_daemon_of_its_own(contestant.who) {
        fill(contestant, &mut made, options.idle_pods()).await?;
        progress.detail(&format!("{who}: {} pods, idle", options.idle_pods()));
        idle::measure(contestant, options.idle_pods(), options.idle_time(), sheet).await?;
    }
    progress.detail(&format!("{who}: {} pods down", made.len()));
    let ends = made.iter().map(|pod| contestant.end(pod));
    stream::iter(ends).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    contestant.settle()
}

async fn fill(contestant: &Contestant, made: &mut Vec<Pod>, pods: usize) -> Result<()> {
    let more =
        (made.len()..pods).map(|number| async move { contestant.sleeper(&format!("dense-{number}")).await });
    let more: Vec<Pod> = stream::iter(more).buffer_unordered(AT_ONCE).try_collect().await?;
    made.extend(more);
    Ok(())
}

//! Keeps the packet filter's rules of the pods' networks: what somebody takes away is made again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::error::chain;
use crate::host::lost_rules::LostRules;

/// One who takes rules away does it in several steps: so long is waited for the last.
const SETTLE: Duration = Duration::from_millis(50);
/// When rules are looked after though nobody told of a loss.
const PERIOD: Duration = Duration::from_secs(300);
/// When it is tried again after a failure; doubled each time up to the period.
const RETRY: Duration = Duration::from_secs(1);

/// Looks after the rules now, after each loss, when plugins say that pods are cut off, and at long intervals, for as
/// long as the daemon runs.
pub fn keep(daemon: Arc<Daemon>) {
    tokio::spawn(async move {
        let mut lost = watch();
        let mut retry = RETRY;
        // Where repairing does not help, what STATUS says is heeded less and less often.
        let (mut heeded, mut pause) = (Instant::now(), RETRY);
        loop {
            if let Some(lost) = &mut lost {
                lost.catch_up();
            }
            let wait = match repair(&daemon).await {
                true => {
                    retry = RETRY;
                    PERIOD
                }
                false => {
                    retry = (retry * 2).min(PERIOD);
                    retry
                }
            };
            let told = async {
                match &mut lost {
                    Some(lost) => lost.next().await,
                    None => std::future::pending().await,
                }
            };
            let told = tokio::select! {
                told = tokio::time::timeout(wait, told) => told,
                () = cut_off(&daemon, heeded) => {
                    (heeded, pause) = (Instant::now() + pause, (pause * 2).min(PERIOD));
                    continue;
                }
            };
            pause = RETRY;
            match told {
                Ok(Ok(())) => tokio::time::sleep(SETTLE).await,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "losses of nf_tables rules are no longer told");
                    lost = None;
                }
                Err(_elapsed) => {}
            }
        }
    });
}

/// Waits until plugins say that pods are cut off, from `heeded` on: they may see more than lost rules, such as
/// forwarding that somebody turned off.
async fn cut_off(daemon: &Daemon, heeded: Instant) {
    tokio::time::sleep_until(heeded).await;
    daemon.cni.limited().await;
}

fn watch() -> Option<LostRules> {
    let watching = LostRules::watch();
    watching.inspect_err(|error| tracing::warn!(%error, "losses of nf_tables rules are not told")).ok()
}

/// Whether all is well afterwards.
async fn repair(daemon: &Daemon) -> bool {
    let ready = daemon.sandboxes.all().into_iter().filter(|sandbox| sandbox.state().is_ready());
    let live = ready.map(|sandbox| sandbox.id().clone()).collect();
    match daemon.cni.repair(&live).await {
        Ok(attachments) => {
            tracing::debug!(attachments, "the pods' nf_tables rules are in place");
            true
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "the pods' nf_tables rules may be incomplete");
            false
        }
    }
}

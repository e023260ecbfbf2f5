//! Finds the monitor of a pod again. One that lives and does not answer, since a disk stalls it or somebody stops it, is
//! looked for while others are served, and killed only when its time is over: containers outlive a slow moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ANSWER, Found, abandon, adopt};
use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::chain;
use crate::host::monitor::{Monitor, MonitorError};
use crate::monitor::protocol::MonitorState;
use crate::steps::supervise;
use crate::store::sandbox::Sandbox;

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// What became of the search.
enum Search {
    Answers(MonitorState),
    Gone,
    Silent,
}

/// Takes over the pod whose monitor answers, and takes back what the pod had whose monitor is gone. Returns at once for
/// one that lives and is silent: the search goes on.
pub(super) async fn find_monitor(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, found: Found) {
    if !decided(daemon, sandbox, &found).await {
        let (daemon, sandbox) = (daemon.clone(), sandbox.clone());
        tokio::spawn(async move { keep_looking(&daemon, &sandbox, &found).await });
    }
}

async fn keep_looking(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, found: &Found) {
    let patience = Duration::from_secs(daemon.config.runtime.monitor_patience_s);
    let until = Instant::now() + patience;
    loop {
        tokio::time::sleep(PAUSE).await;
        let _operation = sandbox.operation.lock().await;
        let is_known = daemon.sandboxes.find(sandbox.id().as_str()).is_some();
        if !is_known || !sandbox.state().is_ready() || sandbox.monitor().is_some() {
            return;
        }
        if decided(daemon, sandbox, found).await {
            return;
        }
        if Instant::now() > until {
            let (pod, seconds) = (sandbox.id().short(), patience.as_secs());
            tracing::error!(pod, seconds, "its monitor did not answer in time: the pod is ended");
            return abandon(daemon, sandbox).await;
        }
    }
}

/// Whether it is known what to do with the pod, and is done.
async fn decided(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, found: &Found) -> bool {
    match attach(daemon, sandbox).await {
        Search::Answers(state) => adopt(daemon, sandbox, &state, found).await,
        Search::Gone => abandon(daemon, sandbox).await,
        Search::Silent => return false,
    }
    true
}

/// Follows the monitor if it answers; what it says then is newer than any event that was missed.
async fn attach(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) -> Search {
    let attached = tokio::time::timeout(ANSWER, async {
        let monitor = Monitor::attach(&daemon.paths.monitor_socket(sandbox.id())).await?;
        // What runs in its containers before anybody else can ask for more.
        let execs = monitor.state().await?.execs;
        supervise::follow(daemon, sandbox, monitor.clone());
        Ok(MonitorState { execs, ..monitor.state().await? })
    });
    let pod = sandbox.id().short();
    let silent = match attached.await {
        Ok(Ok(state)) => return Search::Answers(state),
        Ok(Err(error @ MonitorError::NoMonitor { .. })) => {
            tracing::warn!(pod, error = chain(&error), "its monitor is gone");
            return Search::Gone;
        }
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("no answer within {} s", ANSWER.as_secs()),
    };
    sandbox.set_monitor(None);
    let directory = daemon.paths.pod_state(sandbox.id());
    if matches!(blocking(move || Monitor::holder(&directory)).await, Ok(Ok(None))) {
        tracing::warn!(pod, error = silent, "its monitor is gone");
        return Search::Gone;
    }
    tracing::warn!(pod, error = silent, "its monitor lives and does not answer");
    Search::Silent
}

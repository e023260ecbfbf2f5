//! ListPodSandboxStats.

use std::sync::Arc;

use proto::cri::{ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxStatsFilter};

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::steps::{convert, stats};
use crate::store::sandbox::Sandbox;

/// Statistics of the ready pods that pass the filter.
pub async fn list_pod_sandbox_stats(
    daemon: &Arc<Daemon>,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Error> {
    let filter = request.filter.unwrap_or_default();
    let mut sandboxes = daemon.sandboxes.all();
    sandboxes.retain(|sandbox| sandbox.state().is_ready() && passes(&filter, sandbox));
    let daemon = daemon.clone();
    let stats = blocking(move || stats::sandboxes(&daemon, &sandboxes)).await??;
    Ok(ListPodSandboxStatsResponse { stats })
}

fn passes(filter: &PodSandboxStatsFilter, sandbox: &Sandbox) -> bool {
    sandbox.id().as_str().starts_with(&filter.id)
        && convert::selects(&filter.label_selector, &sandbox.fixed.config.labels)
}

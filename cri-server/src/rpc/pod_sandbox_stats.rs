//! PodSandboxStats.

use std::sync::Arc;

use proto::cri::{PodSandboxStatsRequest, PodSandboxStatsResponse};

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::steps::stats;

/// Statistics of one pod.
pub async fn pod_sandbox_stats(
    daemon: &Arc<Daemon>,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Error> {
    let sandbox = daemon.sandbox(&request.pod_sandbox_id)?;
    let daemon = daemon.clone();
    let mut stats = blocking(move || stats::sandboxes(&daemon, &[sandbox])).await??;
    Ok(PodSandboxStatsResponse { stats: stats.pop() })
}

//! ListPodSandboxStats.

use std::sync::Arc;

use proto::cri::{ListPodSandboxStatsRequest, ListPodSandboxStatsResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::listing;

/// Statistics of the ready pods that pass the filter.
pub async fn list_pod_sandbox_stats(
    daemon: &Arc<Daemon>,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Error> {
    Ok(ListPodSandboxStatsResponse { stats: listing::sandbox_stats(daemon, request.filter).await? })
}

//! ContainerStats.

use std::sync::Arc;

use proto::cri::{ContainerStatsRequest, ContainerStatsResponse};

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::steps::stats;

/// Statistics of one container.
pub async fn container_stats(
    daemon: &Arc<Daemon>,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Error> {
    let container = daemon.container(&request.container_id)?;
    let daemon = daemon.clone();
    let mut stats = blocking(move || stats::containers(&daemon, &[container])).await??;
    Ok(ContainerStatsResponse { stats: stats.pop() })
}

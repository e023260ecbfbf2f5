//! ListContainerStats.

use std::sync::Arc;

use proto::cri::{ListContainerStatsRequest, ListContainerStatsResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::listing;

/// Statistics of the running containers that pass the filter.
pub async fn list_container_stats(
    daemon: &Arc<Daemon>,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Error> {
    Ok(ListContainerStatsResponse { stats: listing::container_stats(daemon, request.filter).await? })
}

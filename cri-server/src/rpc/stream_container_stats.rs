//! StreamContainerStats.

use std::sync::Arc;

use proto::cri::{StreamContainerStatsRequest, StreamContainerStatsResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::listing;

/// The list of ListContainerStats in messages of bounded size.
pub async fn stream_container_stats(
    daemon: &Arc<Daemon>,
    request: StreamContainerStatsRequest,
) -> Result<Vec<StreamContainerStatsResponse>, Error> {
    let chunks = listing::chunks(listing::container_stats(daemon, request.filter).await?);
    Ok(chunks.into_iter().map(|container_stats| StreamContainerStatsResponse { container_stats }).collect())
}

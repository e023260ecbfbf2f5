//! StreamPodSandboxStats.

use std::sync::Arc;

use proto::cri::{StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::listing;

/// The list of ListPodSandboxStats in messages of bounded size.
pub async fn stream_pod_sandbox_stats(
    daemon: &Arc<Daemon>,
    request: StreamPodSandboxStatsRequest,
) -> Result<Vec<StreamPodSandboxStatsResponse>, Error> {
    let chunks = listing::chunks(listing::sandbox_stats(daemon, request.filter).await?);
    Ok(chunks
        .into_iter()
        .map(|pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats })
        .collect())
}

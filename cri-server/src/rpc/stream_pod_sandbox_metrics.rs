//! StreamPodSandboxMetrics.

use std::sync::Arc;

use proto::cri::StreamPodSandboxMetricsResponse;

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::steps::{listing, metrics};

/// The list of ListPodSandboxMetrics in messages of bounded size.
pub async fn stream_pod_sandbox_metrics(
    daemon: &Arc<Daemon>,
) -> Result<Vec<StreamPodSandboxMetricsResponse>, Error> {
    let daemon = daemon.clone();
    let chunks = listing::chunks(blocking(move || metrics::all(&daemon)).await??);
    let message = |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
    Ok(chunks.into_iter().map(message).collect())
}

//! ListPodSandboxMetrics.

use std::sync::Arc;

use proto::cri::ListPodSandboxMetricsResponse;

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::steps::metrics;

/// The metrics of every ready pod.
pub async fn list_pod_sandbox_metrics(daemon: &Arc<Daemon>) -> Result<ListPodSandboxMetricsResponse, Error> {
    let daemon = daemon.clone();
    let pod_metrics = blocking(move || metrics::all(&daemon)).await??;
    Ok(ListPodSandboxMetricsResponse { pod_metrics })
}

//! ListMetricDescriptors.

use proto::cri::ListMetricDescriptorsResponse;

use crate::daemon::Daemon;
use crate::steps::metrics;

/// The metrics that ListPodSandboxMetrics gives on this node.
pub fn list_metric_descriptors(daemon: &Daemon) -> ListMetricDescriptorsResponse {
    ListMetricDescriptorsResponse { descriptors: metrics::descriptors(daemon) }
}

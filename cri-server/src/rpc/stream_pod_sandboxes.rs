//! StreamPodSandboxes.

use proto::cri::{StreamPodSandboxesRequest, StreamPodSandboxesResponse};

use crate::daemon::Daemon;
use crate::steps::listing;

/// The list of ListPodSandbox in messages of bounded size.
pub fn stream_pod_sandboxes(
    daemon: &Daemon,
    request: StreamPodSandboxesRequest,
) -> Vec<StreamPodSandboxesResponse> {
    let chunks = listing::chunks(listing::sandboxes(daemon, request.filter));
    chunks.into_iter().map(|pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }).collect()
}

//! ListPodSandbox.

use bytes::Bytes;
use proto::cri::{ListPodSandboxRequest, ListPodSandboxResponse};

use crate::daemon::Daemon;
use crate::steps::listing;

/// Pod sandboxes that pass the filter, the newest first.
pub fn list_pod_sandbox(daemon: &Daemon, request: ListPodSandboxRequest) -> ListPodSandboxResponse {
    ListPodSandboxResponse { items: listing::sandboxes(daemon, request.filter) }
}

/// The same answer as pieces of its encoding, which are kept with what they tell of.
pub fn encoded(daemon: &Daemon, request: ListPodSandboxRequest) -> Vec<Bytes> {
    listing::encoded_sandboxes(daemon, request.filter)
}

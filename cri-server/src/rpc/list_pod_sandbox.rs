//! ListPodSandbox.

use proto::cri::{ListPodSandboxRequest, ListPodSandboxResponse};

use crate::daemon::Daemon;
use crate::steps::listing;

/// Pod sandboxes that pass the filter, the newest first.
pub fn list_pod_sandbox(daemon: &Daemon, request: ListPodSandboxRequest) -> ListPodSandboxResponse {
    ListPodSandboxResponse { items: listing::sandboxes(daemon, request.filter) }
}

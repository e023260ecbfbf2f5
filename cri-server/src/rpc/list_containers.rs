//! ListContainers.

use proto::cri::{ListContainersRequest, ListContainersResponse};

use crate::daemon::Daemon;
use crate::steps::listing;

/// Containers that pass the filter, the newest first.
pub fn list_containers(daemon: &Daemon, request: ListContainersRequest) -> ListContainersResponse {
    ListContainersResponse { containers: listing::containers(daemon, request.filter) }
}

//! ListContainers.

use bytes::Bytes;
use proto::cri::{ListContainersRequest, ListContainersResponse};

use crate::daemon::Daemon;
use crate::steps::listing;

/// Containers that pass the filter, the newest first.
pub fn list_containers(daemon: &Daemon, request: ListContainersRequest) -> ListContainersResponse {
    ListContainersResponse { containers: listing::containers(daemon, request.filter) }
}

/// The same answer as pieces of its encoding, which are kept with what they tell of.
pub fn encoded(daemon: &Daemon, request: ListContainersRequest) -> Vec<Bytes> {
    listing::encoded_containers(daemon, request.filter)
}

//! StreamContainers.

use proto::cri::{StreamContainersRequest, StreamContainersResponse};

use crate::daemon::Daemon;
use crate::steps::listing;

/// The list of ListContainers in messages of bounded size.
pub fn stream_containers(daemon: &Daemon, request: StreamContainersRequest) -> Vec<StreamContainersResponse> {
    let chunks = listing::chunks(listing::containers(daemon, request.filter));
    chunks.into_iter().map(|containers| StreamContainersResponse { containers }).collect()
}

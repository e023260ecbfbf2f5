//! RemoveContainer: by force, with its writable layer. Idempotent; an unknown id is success.

use std::sync::Arc;

use proto::cri::{RemoveContainerRequest, RemoveContainerResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::teardown;

/// Removes a container.
pub async fn remove_container(
    daemon: &Arc<Daemon>,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Error> {
    let Some(container) = daemon.find_container(&request.container_id)? else {
        return Ok(RemoveContainerResponse {});
    };
    let _operation = container.operation.lock().await;
    let left = teardown::erase_container(daemon, &container).await;
    if !left.is_empty() {
        return Err(Error::Internal(format!("remove container {}: {}", container.id, left.join("; "))));
    }
    Ok(RemoveContainerResponse {})
}

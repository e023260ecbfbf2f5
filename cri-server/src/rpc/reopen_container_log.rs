//! ReopenContainerLog: after it returns, the file at the log path exists and the renamed one gets no more lines.

use std::sync::Arc;

use proto::cri::{ReopenContainerLogRequest, ReopenContainerLogResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::model::container::ContainerState;

/// Reopens the log of a running container.
pub async fn reopen_container_log(
    daemon: &Arc<Daemon>,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Error> {
    let container = daemon.container(&request.container_id)?;
    let state = container.state();
    let monitor = daemon.sandbox(container.pod_id.as_str())?.monitor();
    match (monitor, &state) {
        (Some(monitor), ContainerState::Running { .. }) => monitor.reopen_log(container.id.as_str()).await?,
        _not_running => {
            let reason = format!("expected a running container, it is {}", state.word());
            return Err(Error::FailedPrecondition {
                kind: "container",
                id: container.id.to_string(),
                reason,
            });
        }
    }
    Ok(ReopenContainerLogResponse {})
}

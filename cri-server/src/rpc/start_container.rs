//! StartContainer.

use std::sync::Arc;

use proto::cri::{StartContainerRequest, StartContainerResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::steps::announce;

/// Starts a created container.
pub async fn start_container(
    daemon: &Arc<Daemon>,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Error> {
    let container = daemon.container(&request.container_id)?;
    let _operation = container.operation.lock().await;
    let pid = container.state().start().map_err(Error::denied(&container.id))?;
    let sandbox = daemon.sandbox(container.pod_id.as_str())?;
    let monitor = sandbox.monitor().ok_or_else(|| Error::FailedPrecondition {
        kind: "pod sandbox",
        id: sandbox.id().to_string(),
        reason: "is not ready".into(),
    })?;
    let started = monitor.start(container.id.as_str()).await?;
    // The process may have ended by now, and its end been recorded: an exited container stays exited.
    container.change(|record| match &mut record.state {
        ContainerState::Exited(exit) => exit.started_at = started.started_at_ns,
        state => *state = ContainerState::Running { pid, started_at: started.started_at_ns },
    })?;
    announce::container(daemon, &container);
    Ok(StartContainerResponse {})
}

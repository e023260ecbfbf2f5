//! StopPodSandbox: ends everything in the pod and gives its network back. Idempotent; an unknown id is success.

use std::sync::Arc;

use proto::cri::{StopPodSandboxRequest, StopPodSandboxResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::{announce, teardown};

/// Stops a pod sandbox; a create in flight is aborted first.
pub async fn stop_pod_sandbox(
    daemon: &Arc<Daemon>,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Error> {
    let Some(sandbox) = daemon.find_sandbox(&request.pod_sandbox_id)? else {
        return Ok(StopPodSandboxResponse {});
    };
    sandbox.abort.cancel();
    let _operation = sandbox.operation.lock().await;
    let left = teardown::release_sandbox(daemon, &sandbox).await;
    if !left.is_empty() {
        return Err(Error::Internal(format!("stop pod sandbox {}: {}", sandbox.id(), left.join("; "))));
    }
    if daemon.sandboxes.find(sandbox.id().as_str()).is_some() {
        // What is released is not ready, whether or not the disk can be told.
        let written = sandbox.end();
        announce::sandbox(daemon, &sandbox);
        written?;
    }
    Ok(StopPodSandboxResponse {})
}

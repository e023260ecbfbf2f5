//! RemovePodSandbox: removes the pod, its containers and everything they own. Idempotent; an unknown id is success.

use std::sync::Arc;

use proto::cri::{RemovePodSandboxRequest, RemovePodSandboxResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::{announce, teardown};

/// Removes a pod sandbox, by force.
pub async fn remove_pod_sandbox(
    daemon: &Arc<Daemon>,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Error> {
    let Some(sandbox) = daemon.find_sandbox(&request.pod_sandbox_id)? else {
        return Ok(RemovePodSandboxResponse {});
    };
    sandbox.abort.cancel();
    let _operation = sandbox.operation.lock().await;
    let left = teardown::erase_sandbox(daemon, &sandbox).await;
    if !left.is_empty() {
        sandbox.enter(sandbox.state().stopped())?;
        announce::sandbox(daemon, &sandbox);
        return Err(Error::Internal(format!("remove pod sandbox {}: {}", sandbox.id(), left.join("; "))));
    }
    Ok(RemovePodSandboxResponse {})
}

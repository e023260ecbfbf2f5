//! UpdatePodSandboxResources: the pod's cgroup gets the sum of its containers' resources and its overhead.
//!
//! A kubelet has written the same before it asks. Where nobody has, the pod is held to the new sum from here on.

use std::sync::Arc;

use proto::cri::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::model::sandbox::SandboxState;
use crate::steps::limits;
use crate::store::sandbox::{PodResources, Sandbox};

/// Changes the limits of a ready pod.
pub async fn update_pod_sandbox_resources(
    daemon: &Arc<Daemon>,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Error> {
    let sandbox = daemon.sandbox(&request.pod_sandbox_id)?;
    if sandbox.state() == SandboxState::Creating {
        return Err(Error::NotFound { kind: "pod sandbox", id: request.pod_sandbox_id });
    }
    let _operation = sandbox.operation.lock().await;
    if !sandbox.state().is_ready() {
        return Err(denied(&sandbox, "is not ready".into()));
    }
    let present = sandbox.resources();
    let resources = PodResources {
        overhead: request.overhead.or(present.overhead),
        sum: request.resources.or(present.sum),
    };
    let wanted = limits::sum(resources.sum.as_ref(), resources.overhead.as_ref());
    let path = &sandbox.fixed.cgroup_parent;
    let shared = |other: &Arc<Sandbox>| other.id() != sandbox.id() && other.fixed.cgroup_parent == *path;
    if ["/", "-.slice"].contains(&path.as_str()) || daemon.sandboxes.all().iter().any(shared) {
        return Err(denied(&sandbox, format!("its cgroup {path} is not its own")));
    }
    limits::make_cgroup(daemon, path).await?;
    limits::change(daemon, path, &wanted, &wanted).await?;
    sandbox.set_resources(resources)?;
    Ok(UpdatePodSandboxResourcesResponse {})
}

fn denied(sandbox: &Sandbox, reason: String) -> Error {
    Error::FailedPrecondition { kind: "pod sandbox", id: sandbox.id().to_string(), reason }
}

//! PodSandboxStatus.

use std::collections::BTreeMap;

use proto::cri::{PodSandboxStatusRequest, PodSandboxStatusResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::model::sandbox::SandboxState;
use crate::steps::convert;
use crate::store;
use crate::store::sandbox::Sandbox;

/// Status of a pod sandbox; one that is still being made is not there yet.
pub fn pod_sandbox_status(
    daemon: &Daemon,
    request: &PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Error> {
    let id = &request.pod_sandbox_id;
    let sandbox = daemon.sandbox(id)?;
    if sandbox.state() == SandboxState::Creating {
        return Err(Error::NotFound { kind: "pod sandbox", id: id.clone() });
    }
    let statuses = daemon.containers_of(sandbox.id());
    let containers_statuses = statuses.iter().map(|c| convert::container_status(&c.record())).collect();
    Ok(PodSandboxStatusResponse {
        status: Some(convert::sandbox_status(&sandbox)),
        info: if request.verbose { info(daemon, &sandbox) } else { BTreeMap::new() },
        containers_statuses,
        timestamp: store::now(),
    })
}

fn info(daemon: &Daemon, sandbox: &Sandbox) -> BTreeMap<String, String> {
    let fixed = &sandbox.fixed;
    let info = serde_json::json!({
        "id": fixed.id,
        "pid": 0,
        "runtimeHandler": fixed.runtime_handler,
        "namespaces": fixed.pins,
        "cgroupParent": fixed.cgroup_parent,
        "state": sandbox.state(),
        "directory": daemon.paths.pod_state(sandbox.id()),
    });
    BTreeMap::from([("info".to_string(), info.to_string())])
}

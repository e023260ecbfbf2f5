//! PodSandboxStatus.

use std::collections::BTreeMap;

use proto::cri::{LinuxContainerResources, PodSandboxStatusRequest, PodSandboxStatusResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::model::sandbox::SandboxState;
use crate::steps::{announce, convert};
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
    Ok(PodSandboxStatusResponse {
        status: Some(convert::sandbox_status(&sandbox)),
        info: if request.verbose { info(daemon, &sandbox) } else { BTreeMap::new() },
        containers_statuses: announce::statuses(daemon, sandbox.id()),
        timestamp: store::now(),
    })
}

/// A process in the pod's namespaces, for tools that enter them: the pod's init, or else a container's; 0 if none.
fn process(daemon: &Daemon, sandbox: &Sandbox) -> i32 {
    let init = sandbox.monitor().and_then(|monitor| monitor.welcome().pod_init);
    let containers =
        || daemon.containers_of(sandbox.id()).iter().find_map(|container| container.state().pid());
    init.or_else(containers).unwrap_or(0)
}

fn info(daemon: &Daemon, sandbox: &Sandbox) -> BTreeMap<String, String> {
    let fixed = &sandbox.fixed;
    let monitor = sandbox.monitor();
    let resources = sandbox.resources();
    let info = serde_json::json!({
        "id": fixed.id,
        "pid": process(daemon, sandbox),
        "monitorPid": monitor.as_ref().map(|monitor| monitor.welcome().monitor_pid),
        "runtimeHandler": fixed.runtime_handler,
        "namespaces": fixed.pins,
        "cgroupParent": fixed.cgroup_parent,
        "selinux": fixed.selinux,
        "resources": resources.sum.as_ref().map(limits),
        "overhead": resources.overhead.as_ref().map(limits),
        "state": sandbox.state(),
        "directory": daemon.paths.pod_state(sandbox.id()),
    });
    BTreeMap::from([("info".to_string(), info.to_string())])
}

fn limits(resources: &LinuxContainerResources) -> serde_json::Value {
    serde_json::json!({
        "cpuPeriod": resources.cpu_period,
        "cpuQuota": resources.cpu_quota,
        "cpuShares": resources.cpu_shares,
        "memoryLimitInBytes": resources.memory_limit_in_bytes,
    })
}

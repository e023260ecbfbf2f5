//! ContainerStatus.

use std::collections::BTreeMap;

use proto::cri::{ContainerStatusRequest, ContainerStatusResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::steps::convert;
use crate::store::container::ContainerRecord;

/// Largest specification shown, bytes.
const SPEC_LIMIT: u64 = 4 << 20;

/// Status of a container; one that is still being made is not there yet.
pub fn container_status(
    daemon: &Daemon,
    request: &ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Error> {
    let id = &request.container_id;
    let record = daemon.container(id)?.record();
    if record.state == ContainerState::Creating {
        return Err(Error::NotFound { kind: "container", id: id.clone() });
    }
    Ok(ContainerStatusResponse {
        status: Some(convert::container_status(&record)),
        info: if request.verbose { info(daemon, &record) } else { BTreeMap::new() },
    })
}

fn info(daemon: &Daemon, record: &ContainerRecord) -> BTreeMap<String, String> {
    let bundle = daemon.paths.bundle(&record.id);
    let spec = std::fs::File::open(bundle.join("config.json"))
        .and_then(|file| crate::host::fs::read_bounded(file, SPEC_LIMIT))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    let info = serde_json::json!({
        "sandboxID": record.pod_id,
        "pid": record.state.pid().unwrap_or(0),
        "runtimeHandler": record.handler,
        "cgroupsPath": record.cgroups_path,
        "cgroup": daemon.cgroup(&record.cgroups_path).ok().map(|cgroup| cgroup.path().to_string()),
        "bundle": bundle,
        "rootfs": daemon.paths.rootfs(&record.id),
        "snapshotter": "overlayfs",
        "snapshotKey": record.id,
        "snapshot": daemon.paths.container(&record.id),
        "layers": record.layers,
        "user": record.user,
        "runtimeSpec": spec,
    });
    BTreeMap::from([("info".to_string(), info.to_string())])
}

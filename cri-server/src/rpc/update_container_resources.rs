//! UpdateContainerResources: written to the container's cgroup, all or nothing, and kept in its record.
//!
//! Annotations of the request are for plugins, of which there are none. A crash between cgroup and record leaves
//! the cgroup ahead: the kubelet asks again.

use std::sync::Arc;

use proto::cri::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::steps::cri_config::missing;
use crate::steps::limits;
use crate::store::container::Container;

/// Changes the limits of a created or running container.
pub async fn update_container_resources(
    daemon: &Arc<Daemon>,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Error> {
    let container = daemon.container(&request.container_id)?;
    let asked = request.linux.ok_or_else(|| missing("linux"))?;
    let _operation = container.operation.lock().await;
    if !matches!(container.state(), ContainerState::Created { .. } | ContainerState::Running { .. }) {
        return Err(not_there(&container));
    }
    let score = limits::check_oom_score(asked.oom_score_adj)?;
    let record = container.record();
    let merged = limits::merge(&record.resources(), &asked);
    let changed = async {
        limits::change(daemon, &record.cgroups_path, &asked, &merged).await?;
        let (node, cgroup) = (daemon.clone(), daemon.cgroup(&record.cgroups_path)?);
        let give_score = move || {
            limits::set_oom_score(&node, score, &cgroup.procs()?);
            Ok(())
        };
        if score == 0 { Ok::<(), Error>(()) } else { blocking(give_score).await? }
    };
    changed
        .await
        // The end may have come in between, and have taken the cgroup with it.
        .map_err(|error| if container.state().is_exited() { not_there(&container) } else { error })?;
    container.change(|record| record.updated = Some(merged))?;
    Ok(UpdateContainerResourcesResponse {})
}

fn not_there(container: &Container) -> Error {
    Error::FailedPrecondition {
        kind: "container",
        id: container.id.to_string(),
        reason: format!("expected a created or running container, it is {}", container.state().word()),
    }
}

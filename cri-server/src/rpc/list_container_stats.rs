//! ListContainerStats.

use std::sync::Arc;

use proto::cri::{ContainerStatsFilter, ListContainerStatsRequest, ListContainerStatsResponse};

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::steps::{convert, stats};
use crate::store::container::ContainerRecord;

/// Statistics of the running containers that pass the filter.
pub async fn list_container_stats(
    daemon: &Arc<Daemon>,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Error> {
    let filter = request.filter.unwrap_or_default();
    let mut containers = daemon.containers.all();
    containers.retain(|container| {
        let record = container.record();
        record.state.pid().is_some() && passes(&filter, &record)
    });
    let daemon = daemon.clone();
    let read = move || containers.iter().map(|container| stats::container(&daemon, container)).collect();
    let stats: Result<Vec<_>, Error> = blocking(read).await?;
    Ok(ListContainerStatsResponse { stats: stats? })
}

fn passes(filter: &ContainerStatsFilter, record: &ContainerRecord) -> bool {
    record.id.as_str().starts_with(&filter.id)
        && record.pod_id.as_str().starts_with(&filter.pod_sandbox_id)
        && convert::selects(&filter.label_selector, &record.config.labels)
}

//! ListContainers.

use proto::cri::{ContainerFilter, ListContainersRequest, ListContainersResponse};

use crate::daemon::Daemon;
use crate::model::container::ContainerState;
use crate::steps::convert;
use crate::store::container::ContainerRecord;

/// Containers that pass the filter, the newest first.
pub fn list_containers(daemon: &Daemon, request: &ListContainersRequest) -> ListContainersResponse {
    let filter = request.filter.clone().unwrap_or_default();
    let mut records: Vec<_> = daemon.containers.all().iter().map(|container| container.record()).collect();
    records.retain(|record| record.state != ContainerState::Creating && passes(&filter, record));
    records.sort_by_key(|record| std::cmp::Reverse(record.created_at));
    ListContainersResponse {
        containers: records.iter().map(|record| convert::container_item(record)).collect(),
    }
}

fn passes(filter: &ContainerFilter, record: &ContainerRecord) -> bool {
    record.id.as_str().starts_with(&filter.id)
        && record.pod_id.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.is_none_or(|state| state.state == convert::container_state(&record.state) as i32)
        && convert::selects(&filter.label_selector, &record.config.labels)
}

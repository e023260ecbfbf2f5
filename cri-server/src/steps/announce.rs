//! Tells the listeners what became of a sandbox or a container: call it after each change of state.

use std::sync::Arc;

use proto::cri::{ContainerEventResponse, ContainerEventType, ContainerStatus, PodSandboxState};

use super::convert;
use crate::daemon::Daemon;
use crate::model::container::ContainerState;
use crate::model::id::PodId;
use crate::model::stage::Stage;
use crate::store::container::Container;
use crate::store::sandbox::Sandbox;

/// Tells how far a container has come since the last call.
pub fn container(daemon: &Daemon, container: &Container) {
    reached(daemon, container, || Stage::of_container(&container.state()));
}

/// Tells that a container is gone.
pub fn container_deleted(daemon: &Daemon, container: &Container) {
    reached(daemon, container, || Stage::Deleted);
}

fn reached(daemon: &Daemon, container: &Container, look: impl FnOnce() -> Stage) {
    daemon.events.announce(&container.announced, look, |stage| {
        let record = container.record();
        // One that was never started has only been made, and has ended.
        if stage == Stage::Started && record.state.started_at() == 0 {
            return None;
        }
        let sandbox = daemon.sandboxes.find(container.pod_id.as_str());
        Some(ContainerEventResponse {
            container_id: container.id.to_string(),
            container_event_type: event_type(stage) as i32,
            pod_sandbox_status: sandbox.as_deref().map(convert::sandbox_status),
            containers_statuses: statuses(daemon, &container.pod_id),
            ..Default::default()
        })
    });
}

/// Tells how far a sandbox has come since the last call, under the sandbox's id, as other runtimes do.
pub fn sandbox(daemon: &Daemon, sandbox: &Sandbox) {
    sandbox_reached(daemon, sandbox, || Stage::of_sandbox(&sandbox.state()));
}

/// Tells that a sandbox is gone.
pub fn sandbox_deleted(daemon: &Daemon, sandbox: &Sandbox) {
    sandbox_reached(daemon, sandbox, || Stage::Deleted);
}

fn sandbox_reached(daemon: &Daemon, sandbox: &Sandbox, look: impl FnOnce() -> Stage) {
    daemon.events.announce(&sandbox.announced, look, |stage| {
        let mut status = convert::sandbox_status(sandbox);
        if stage >= Stage::Stopped {
            status.state = PodSandboxState::SandboxNotready as i32;
        }
        Some(ContainerEventResponse {
            container_id: sandbox.id().to_string(),
            container_event_type: event_type(stage) as i32,
            pod_sandbox_status: Some(status),
            containers_statuses: statuses(daemon, sandbox.id()),
            ..Default::default()
        })
    });
}

/// The statuses of a pod's containers; one that is still being made is not there yet.
pub fn statuses(daemon: &Daemon, pod: &PodId) -> Vec<ContainerStatus> {
    let records = daemon.containers_of(pod).into_iter().map(|container: Arc<Container>| container.record());
    let made = records.filter(|record| record.state != ContainerState::Creating);
    made.map(|record| convert::container_status(&record)).collect()
}

fn event_type(stage: Stage) -> ContainerEventType {
    match stage {
        Stage::New | Stage::Created => ContainerEventType::ContainerCreatedEvent,
        Stage::Started => ContainerEventType::ContainerStartedEvent,
        Stage::Stopped => ContainerEventType::ContainerStoppedEvent,
        Stage::Deleted => ContainerEventType::ContainerDeletedEvent,
    }
}

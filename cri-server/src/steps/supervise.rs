//! Follows the monitors: an exit becomes a state, a lost monitor becomes lost containers.

use std::sync::Arc;

use super::{announce, teardown};
use crate::daemon::Daemon;
use crate::error::chain;
use crate::host::monitor::Monitor;
use crate::model::container::{ContainerState, Exit};
use crate::model::id::PodId;
use crate::monitor::protocol::{ContainerStatus, Event};
use crate::monitor::record::ExitRecord;
use crate::store;
use crate::store::container::Container;
use crate::store::sandbox::Sandbox;

/// Puts the monitor in place and follows its events until it is gone, also if it is so already.
pub fn follow(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, monitor: Monitor) {
    let mut events = monitor.events();
    sandbox.set_monitor(Some(monitor.clone()));
    let (daemon, sandbox) = (daemon.clone(), sandbox.clone());
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                // What was told before the end counts.
                biased;
                event = events.recv() => event,
                () = monitor.gone() => break,
            };
            match event {
                Ok(Event::ContainerExited(record)) => exited(&daemon, &record),
                Ok(Event::ContainerStarted { id, started_at_ns }) => started(&daemon, &id, started_at_ns),
                Ok(Event::ExecExited { .. } | Event::Detached { .. } | Event::PodInitExited) => {}
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => catch_up(&daemon, &sandbox).await,
                Ok(Event::Gone) | Err(tokio::sync::broadcast::error::RecvError::Closed) => break,
            }
        }
        if sandbox.monitor().is_some() {
            lost(&daemon, &sandbox).await;
        }
    });
}

/// Takes over the ends of containers whose pod's record is unreadable, and does nothing else to that pod.
pub fn listen(daemon: &Arc<Daemon>, pod: PodId, monitor: Monitor) {
    let mut events = monitor.events();
    let daemon = daemon.clone();
    tokio::spawn(async move {
        tell_exited(&daemon, &monitor).await;
        loop {
            match events.recv().await {
                Ok(Event::ContainerExited(record)) => exited(&daemon, &record),
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                    tell_exited(&daemon, &monitor).await;
                }
                Ok(Event::Gone) | Err(tokio::sync::broadcast::error::RecvError::Closed) => break,
                Ok(_others) => {}
            }
        }
        lose_containers(&daemon, &pod).await;
    });
}

async fn tell_exited(daemon: &Arc<Daemon>, monitor: &Monitor) {
    let Ok(state) = monitor.state().await else { return };
    for container in &state.containers {
        if let ContainerStatus::Exited { record, .. } = &container.status {
            exited(daemon, record);
        }
    }
}

/// Takes over a start that its caller did not live to hear of.
fn started(daemon: &Daemon, id: &str, started_at: i64) {
    let Some(container) = daemon.containers.find(id) else { return };
    let ContainerState::Created { pid } = container.state() else { return };
    // It may have exited meanwhile, and then it stays so.
    if let Err(error) = container.enter(ContainerState::Running { pid, started_at }) {
        let container = container.id.short();
        tracing::error!(container, error = chain(&error), "the start cannot be recorded");
    }
    announce::container(daemon, &container);
}

/// Takes over an end that the monitor has recorded.
pub fn exited(daemon: &Arc<Daemon>, record: &ExitRecord) {
    let Some(container) = daemon.containers.find(record.container_id.as_str()) else { return };
    if container.state().is_exited() {
        return;
    }
    // What the monitor has made safe need not be written before it is told.
    container.show_exit(exit(&container, record));
    announce::container(daemon, &container);
    teardown::release_later(daemon, container);
}

/// The end that a monitor's record describes.
pub fn exit(container: &Container, record: &ExitRecord) -> Exit {
    let reason = match (record.oom_killed, record.exit_code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    Exit {
        started_at: record.started_at_ns.unwrap_or_else(|| container.state().started_at()),
        finished_at: record.finished_at_ns,
        exit_code: record.exit_code,
        reason: reason.into(),
        message: String::new(),
    }
}

/// Records an end; one that cannot be written is at least shown.
pub fn end(daemon: &Daemon, container: &Container, exit: Exit) {
    if let Err(error) = container.enter(ContainerState::Exited(exit.clone())) {
        tracing::error!(
            container = container.id.short(),
            error = chain(&error),
            "the end cannot be recorded"
        );
        container.show_exit(exit);
    }
    announce::container(daemon, container);
}

/// Asks for all states again after events were missed.
async fn catch_up(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) {
    let Some(monitor) = sandbox.monitor() else { return };
    match monitor.state().await {
        Ok(state) => {
            for container in &state.containers {
                match &container.status {
                    ContainerStatus::Running { started_at_ns, .. } => {
                        started(daemon, &container.id, *started_at_ns);
                    }
                    ContainerStatus::Exited { record, .. } => exited(daemon, record),
                    ContainerStatus::Creating | ContainerStatus::Created { .. } => {}
                }
            }
        }
        Err(error) => {
            tracing::warn!(pod = sandbox.id().short(), error = chain(&error), "the monitor is silent")
        }
    }
}

/// The monitor is gone without having been told to go: nothing of the pod may go on unseen.
pub async fn lost(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) {
    tracing::error!(pod = sandbox.id().short(), "the monitor is gone; its containers are killed");
    sandbox.set_monitor(None);
    lose_containers(daemon, sandbox.id()).await;
    if sandbox.state().is_ready()
        && let Err(error) = sandbox.end()
    {
        tracing::error!(pod = sandbox.id().short(), error = chain(&error), "cannot be recorded as not ready");
    }
    announce::sandbox(daemon, sandbox);
}

/// Ends the containers that a dead monitor has left.
async fn lose_containers(daemon: &Arc<Daemon>, pod: &PodId) {
    for container in daemon.containers_of(pod) {
        if container.state().is_exited() {
            continue;
        }
        if let Err(error) = teardown::kill_cgroup(daemon, &container).await {
            tracing::error!(container = container.id.short(), error = chain(&error), "cannot be killed");
        }
        let at = container.state().started_at();
        end(daemon, &container, Exit::unseen(at, store::now(), "the pod's monitor died"));
        teardown::release_later(daemon, container);
    }
}

//! What a start finds: records × kernel objects → truth.
//!
//! Every record is read first. Then each pod is looked at on its own and in parallel: its monitor answers, or what
//! the pod had is taken back. A monitor that lives but does not answer yet is waited for while others are served.
//! At last everything that no live object owns is undone, except where a record was
//! unreadable: then nothing of that kind is collected, since it may belong to the quarantined object.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

mod collection;
mod search;

use crate::daemon::Daemon;
use crate::error::{Error, chain};
use crate::model::container::{ContainerState, Exit};
use crate::model::id::{ContainerId, PodId};
use crate::model::sandbox::SandboxState;
use crate::monitor::protocol::{ContainerStatus, MonitorState, Target};
use crate::monitor::record::ExitRecord;
use crate::steps::{announce, supervise, teardown};
use crate::store;
use crate::store::container::{self, Container, ContainerRecord};
use crate::store::record::{self, RecordError};
use crate::store::sandbox::{self, Sandbox, SandboxRecord};

/// Longest wait for a monitor: a wedged one must not keep the others from being served.
const ANSWER: Duration = Duration::from_secs(4);

/// Largest exit record, bytes.
const EXIT_LIMIT: u64 = 1 << 20;

/// Objects that could not be read: what may belong to them is left alone.
#[derive(Debug, Default, Clone, Copy)]
struct Quarantine {
    pods: bool,
    containers: bool,
}

/// Brings memory, records and kernel into agreement. Never fails as a whole: what cannot be mended is logged.
pub async fn recover(daemon: &Arc<Daemon>) -> Result<(), Error> {
    let quarantine = load(daemon)?;
    let mut pods = tokio::task::JoinSet::new();
    for sandbox in daemon.sandboxes.all() {
        let daemon = daemon.clone();
        pods.spawn(async move { recover_pod(&daemon, &sandbox, quarantine).await });
    }
    while let Some(result) = pods.join_next().await {
        if let Err(error) = result {
            tracing::error!(%error, "a pod cannot be recovered");
        }
    }
    collection::collect(daemon, quarantine).await;
    Ok(())
}

fn load(daemon: &Daemon) -> Result<Quarantine, Error> {
    let mut quarantine = Quarantine::default();
    for (id, directory) in directories::<PodId>(&daemon.paths.pods())? {
        match record::read::<SandboxRecord>(&sandbox::path(&directory)) {
            Ok(Some(record)) => daemon.sandboxes.insert(id.as_str(), Sandbox::new(record, directory)),
            Ok(None) => {}
            Err(error) => quarantine.pods |= unreadable(&error),
        }
    }
    for (id, directory) in directories::<ContainerId>(&daemon.paths.containers())? {
        match record::read::<ContainerRecord>(&container::path(&directory)) {
            Ok(Some(record)) => {
                let lease = daemon.images.lease_layers(&record.all_layers());
                let container = Container::new(record, directory);
                lease.into_iter().for_each(|lease| container.keep_layers(lease));
                daemon.containers.insert(id.as_str(), container);
            }
            Ok(None) => {}
            Err(error) => quarantine.containers |= unreadable(&error),
        }
    }
    Ok(quarantine)
}

fn unreadable(error: &RecordError) -> bool {
    tracing::error!(
        error = chain(error),
        "quarantined: nothing of its kind is collected until it is removed by hand"
    );
    true
}

/// Subdirectories whose names are ids.
fn directories<Id: TryFrom<String>>(parent: &Path) -> Result<Vec<(Id, std::path::PathBuf)>, Error> {
    let reading = || Error::host(format!("read directory {}", parent.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(parent).map_err(reading())? {
        let entry = entry.map_err(reading())?;
        if let Ok(id) = Id::try_from(entry.file_name().to_string_lossy().into_owned()) {
            found.push((id, entry.path()));
        }
    }
    Ok(found)
}

async fn recover_pod(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, quarantine: Quarantine) {
    let _operation = sandbox.operation.lock().await;
    let this_boot = sandbox.fixed.boot_id == daemon.boot_id;
    match sandbox.state() {
        SandboxState::Creating => {
            let left = teardown::erase_sandbox(daemon, sandbox).await;
            // Shown, so that it can be removed and does not keep its name.
            if !left.is_empty() {
                enter_not_ready(daemon, sandbox);
            }
            report(sandbox, left);
        }
        SandboxState::Ready { .. } if this_boot => {
            let containers = daemon.containers_of(sandbox.id());
            for container in &containers {
                teardown::remove_process_files(&daemon.paths.bundle(&container.id));
            }
            search::find_monitor(daemon, sandbox, Found { containers, quarantine }).await;
        }
        SandboxState::Ready { .. } | SandboxState::NotReady { .. } => abandon(daemon, sandbox).await,
    }
}

/// What was there of a pod before anybody was served.
struct Found {
    containers: Vec<Arc<Container>>,
    quarantine: Quarantine,
}

/// Takes over a pod whose monitor lives.
async fn adopt(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, state: &MonitorState, found: &Found) {
    undo_unfinished(daemon, sandbox, &found.containers).await;
    end_execs(sandbox, state).await;
    if !found.quarantine.containers {
        delete_strangers(daemon, sandbox, state).await;
    }
    for container in &found.containers {
        if daemon.containers.find(container.id.as_str()).is_none() {
            continue;
        }
        let known = state.containers.iter().find(|known| known.id == container.id.as_str());
        match known.map(|known| &known.status) {
            Some(ContainerStatus::Running { pid, started_at_ns }) => {
                show(daemon, container, ContainerState::Running { pid: *pid, started_at: *started_at_ns });
            }
            Some(ContainerStatus::Exited { .. }) if container.state().is_exited() => {
                teardown::release_later(daemon, container.clone());
            }
            Some(ContainerStatus::Exited { record, .. }) => supervise::exited(daemon, record),
            Some(ContainerStatus::Created { .. } | ContainerStatus::Creating) => {}
            None => {
                settle(daemon, container);
                teardown::release_later(daemon, container.clone());
            }
        }
    }
}

/// Undoes containers whose making was cut off. One that cannot be undone wholly is shown, so that it can be removed.
async fn undo_unfinished(daemon: &Arc<Daemon>, sandbox: &Sandbox, containers: &[Arc<Container>]) {
    for container in containers {
        if container.state() == ContainerState::Creating {
            let left = teardown::erase_container(daemon, container).await;
            if !left.is_empty() {
                supervise::end(daemon, container, unseen(container));
            }
            report(sandbox, left);
        }
    }
}

/// Kills the commands that a dead daemon had started: nobody reads their output or keeps their deadline any more.
async fn end_execs(sandbox: &Sandbox, state: &MonitorState) {
    let Some(monitor) = sandbox.monitor() else { return };
    for exec in &state.execs {
        if let Err(error) = monitor.signal(Target::Exec(exec.exec_id.clone()), libc::SIGKILL).await {
            tracing::warn!(pod = sandbox.id().short(), error = chain(&error), "a command goes on unheard");
        }
    }
}

/// Deletes what the monitor has and no record names: its making went on after the daemon's death.
async fn delete_strangers(daemon: &Daemon, sandbox: &Sandbox, state: &MonitorState) {
    let Some(monitor) = sandbox.monitor() else { return };
    for stranger in state.containers.iter().filter(|known| daemon.containers.find(&known.id).is_none()) {
        if let Err(error) = monitor.delete(&stranger.id).await {
            tracing::error!(
                container = stranger.id,
                error = chain(&error),
                "a container without a record stays"
            );
        }
    }
}

fn show(daemon: &Daemon, container: &Container, state: ContainerState) {
    if let Err(error) = container.enter(state) {
        tracing::error!(
            container = container.id.short(),
            error = chain(&error),
            "its state cannot be recorded"
        );
    }
    announce::container(daemon, container);
}

/// Takes back what a pod had whose monitor or boot is gone; its records stay until it is removed.
async fn abandon(daemon: &Arc<Daemon>, sandbox: &Sandbox) {
    let containers = daemon.containers_of(sandbox.id());
    undo_unfinished(daemon, sandbox, &containers).await;
    for container in containers {
        if sandbox.fixed.boot_id == daemon.boot_id
            && let Err(error) = teardown::kill_cgroup(daemon, &container).await
        {
            tracing::error!(container = container.id.short(), error = chain(&error), "cannot be killed");
        }
        settle(daemon, &container);
    }
    report(sandbox, teardown::release_sandbox(daemon, sandbox).await);
    if sandbox.state().is_ready() {
        enter_not_ready(daemon, sandbox);
    }
}

fn enter_not_ready(daemon: &Daemon, sandbox: &Sandbox) {
    if let Err(error) = sandbox.enter(sandbox.state().stopped()) {
        tracing::error!(pod = sandbox.id().short(), error = chain(&error), "cannot be recorded as not ready");
    }
    announce::sandbox(daemon, sandbox);
}

/// Gives a container without a monitor its end: the recorded one, or that nobody saw it.
fn settle(daemon: &Daemon, container: &Container) {
    if container.state().is_exited() {
        return;
    }
    let path = container::exit_path(&daemon.paths.container(&container.id));
    let exit = match read_exit(&path) {
        Ok(Some(record)) => supervise::exit(container, &record),
        Ok(None) => unseen(container),
        Err(reason) => {
            tracing::error!(container = container.id.short(), reason, "its exit record is unreadable");
            unseen(container)
        }
    };
    supervise::end(daemon, container, exit);
}

fn read_exit(path: &Path) -> Result<Option<ExitRecord>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let bytes = crate::host::fs::read_bounded(file, EXIT_LIMIT).map_err(|error| error.to_string())?;
    ExitRecord::decode(&bytes).map(Some).map_err(|error| chain(&error))
}

fn unseen(container: &Container) -> Exit {
    Exit::unseen(container.state().started_at(), store::now(), "nobody saw the end: the monitor was gone")
}

fn report(sandbox: &Sandbox, failures: Vec<String>) {
    for failure in failures {
        tracing::error!(pod = sandbox.id().short(), failure, "left behind, to be retried by stop and remove");
    }
}

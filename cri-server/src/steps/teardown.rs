//! Taking things back. Everything that a pod or a container owns has a name in its record, so every step here is
//! idempotent, takes "already gone" for success, and is the same for a failed create, a stop, a remove and a
//! recovery. Teardown never stops at the first error.

use std::io::ErrorKind::NotFound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{announce, supervise};
use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::{Error, chain};
use crate::host::cgroup::{Unit, is_own_parent};
use crate::host::monitor::{Monitor, MonitorError};
use crate::host::mount;
use crate::host::systemd;
use crate::model::container::{ContainerState, Exit};
use crate::model::id::ContainerId;
use crate::model::sandbox::SandboxState;
use crate::monitor::protocol::Target;
use crate::paths::Paths;
use crate::store;
use crate::store::container::Container;
use crate::store::sandbox::Sandbox;

/// Longest time for one call of the OCI runtime or the monitor.
const CALL: Duration = Duration::from_secs(20);
/// Longest wait for the end of a killed process.
const KILLED: Duration = Duration::from_secs(10);

/// Kills the container's processes and waits until its end is known.
pub async fn kill(daemon: &Daemon, container: &Container) -> Result<(), Error> {
    let mut state = container.watch();
    if state.borrow_and_update().is_exited() {
        return Ok(());
    }
    let monitor = daemon.sandboxes.find(container.pod_id.as_str()).and_then(|sandbox| sandbox.monitor());
    let signalled = match monitor {
        Some(monitor) => {
            let target = Target::Container(container.id.to_string());
            tokio::time::timeout(CALL, monitor.signal(target, libc::SIGKILL))
                .await
                .is_ok_and(|sent| sent.is_ok())
        }
        None => false,
    };
    if signalled && tokio::time::timeout(KILLED, state.wait_for(|state| state.is_exited())).await.is_ok() {
        return Ok(());
    }
    kill_cgroup(daemon, container).await?;
    let at = container.state().started_at();
    let unseen = Exit::unseen(at, store::now(), "the monitor did not report the end");
    if container.state() == ContainerState::Creating {
        // Its record stays one that a recovery undoes.
        container.show_exit(unseen);
        announce::container(daemon, container);
    } else {
        supervise::end(daemon, container, unseen);
    }
    Ok(())
}

/// Kills what is in the container's cgroup, whoever started it.
pub async fn kill_cgroup(daemon: &Daemon, container: &Container) -> Result<(), Error> {
    let cgroup = daemon.cgroup(&container.record().cgroups_path)?;
    Ok(blocking(move || cgroup.kill_all(KILLED)).await??)
}

/// Takes back what a container has for this boot: the OCI runtime's state, its cgroup, its root, its bundle.
pub async fn release_container(daemon: &Daemon, container: &Container) -> Vec<String> {
    let mut failures = Vec::new();
    if container.released.get().is_some() {
        return failures;
    }
    let record = container.record();
    let id = container.id.to_string();
    let monitor = daemon.sandboxes.find(container.pod_id.as_str()).and_then(|sandbox| sandbox.monitor());
    let mut deleted = false;
    if let Some(monitor) = monitor {
        match tokio::time::timeout(CALL, monitor.delete(&id)).await {
            Ok(Ok(())) => deleted = true,
            Ok(Err(error)) => {
                tracing::debug!(container = id, error = chain(&error), "the monitor could not delete")
            }
            Err(_) => tracing::warn!(container = id, "the monitor did not answer a delete"),
        }
    }
    if !deleted {
        failures.extend(delete_without_monitor(daemon, container).await);
    }
    note(&mut failures, "cgroup", remove_cgroup(daemon, &record.cgroups_path).await);
    let mounts = mounts_of(&daemon.paths, &container.id);
    let volumes = daemon.paths.mapped_volumes(&container.id);
    let bundle = daemon.paths.bundle(&container.id);
    let removed = blocking(move || {
        let unmounted = mounts.iter().map(|path| mount::unmount(path)).fold(Ok(()), Result::and);
        let cleared = mount::clear(&volumes);
        // What is still mounted must not be walked into: its files are the layers', or a volume's.
        let removable = unmounted.is_ok() && cleared.is_ok();
        let removed = if removable { mount::remove_tree(&bundle) } else { Ok(()) };
        [("root and images", unmounted), ("volumes", cleared), ("bundle", removed)]
    })
    .await;
    match removed {
        Ok(results) => failures.extend(results.into_iter().filter_map(failure)),
        Err(error) => failures.push(chain(&error)),
    }
    // While it is being made more of it may come, also when it was ended meanwhile: its user is known last.
    if failures.is_empty() && container.state().is_exited() && container.record().user.is_some() {
        container.released.get_or_init(|| ());
    }
    failures
}

/// Ends what runs of the container and what still makes it, and lets the OCI runtime forget it.
async fn delete_without_monitor(daemon: &Daemon, container: &Container) -> Vec<String> {
    let mut failures = Vec::new();
    let oci = match daemon.oci(&container.record().handler) {
        Ok(oci) => oci,
        Err(error) => {
            note(&mut failures, "kill", kill_cgroup(daemon, container).await);
            failures.push(chain(&error));
            return failures;
        }
    };
    let (runs, id) = (oci.clone(), container.id.to_string());
    match blocking(move || runs.end_runs(&id, KILLED)).await {
        Ok(ended) => failures.extend(ended.err().map(|error| format!("the OCI runtime's runs: {error}"))),
        Err(error) => failures.push(chain(&error)),
    }
    note(&mut failures, "kill", kill_cgroup(daemon, container).await);
    failures.extend(oci.delete(container.id.as_str(), CALL).await.err());
    failures
}

/// Where something may be mounted for the container: its root, and images that are its volumes.
pub fn mounts_of(paths: &Paths, id: &ContainerId) -> Vec<PathBuf> {
    let images = std::fs::read_dir(paths.image_mounts(id)).into_iter().flatten().flatten();
    std::iter::once(paths.rootfs(id)).chain(images.map(|entry| entry.path())).collect()
}

/// Takes back all of a container, its writable layer and volumes, and last its record.
pub async fn erase_container(daemon: &Daemon, container: &Container) -> Vec<String> {
    let mut failures = Vec::new();
    note(&mut failures, "kill", kill(daemon, container).await);
    failures.extend(release_container(daemon, container).await);
    if !failures.is_empty() {
        return failures;
    }
    let directory = daemon.paths.container(&container.id);
    let erased = blocking(move || erase_directory(&directory)).await;
    match erased {
        Ok(Ok(())) => {
            daemon.containers.remove(container.id.as_str());
            announce::container_deleted(daemon, container);
        }
        Ok(Err(error)) => failures.push(format!("writable layer and volumes: {error}")),
        Err(error) => failures.push(chain(&error)),
    }
    failures
}

/// Takes back what a sandbox has for this boot: containers, network, monitor, namespaces, shared memory, and its
/// cgroup where the request named no parent.
pub async fn release_sandbox(daemon: &Daemon, sandbox: &Sandbox) -> Vec<String> {
    let mut failures = Vec::new();
    if sandbox.released.get().is_some() {
        return failures;
    }
    sandbox.files.close();
    end_wedged(daemon, sandbox).await;
    for container in daemon.containers_of(sandbox.id()) {
        note(&mut failures, "kill a container", kill(daemon, &container).await);
        failures.extend(release_container(daemon, &container).await);
    }
    if sandbox.fixed.pins.net.is_some()
        && let Err(error) = daemon.cni.del(sandbox.id()).await
    {
        failures.push(format!("network: {}", chain(&error)));
    }
    failures.extend(end_monitor(daemon, sandbox).await);
    let pins: Vec<_> = sandbox.fixed.pins.iter().cloned().collect();
    let shm = daemon.paths.shm(sandbox.id());
    if is_own_parent(&sandbox.fixed.cgroup_parent, sandbox.id().as_str()) {
        note(&mut failures, "cgroup", remove_cgroup(daemon, &sandbox.fixed.cgroup_parent).await);
    }
    let undone = blocking(move || {
        let mut results: Vec<_> = pins.iter().map(|pin| ("namespace", mount::unpin(pin))).collect();
        results.push(("shared memory", mount::unmount(&shm)));
        results
    })
    .await;
    match undone {
        Ok(results) => failures.extend(results.into_iter().filter_map(failure)),
        Err(error) => failures.push(chain(&error)),
    }
    // While it is being made more of it may come.
    if failures.is_empty() && sandbox.state() != SandboxState::Creating {
        sandbox.released.get_or_init(|| ());
    }
    failures
}

/// Takes back all of a sandbox, its files, and last its record.
pub async fn erase_sandbox(daemon: &Daemon, sandbox: &Sandbox) -> Vec<String> {
    let mut failures = Vec::new();
    end_wedged(daemon, sandbox).await;
    for container in daemon.containers_of(sandbox.id()) {
        failures.extend(erase_container(daemon, &container).await);
    }
    failures.extend(release_sandbox(daemon, sandbox).await);
    if !failures.is_empty() {
        return failures;
    }
    let (state, directory) = (daemon.paths.pod_state(sandbox.id()), daemon.paths.pod(sandbox.id()));
    let erased = blocking(move || {
        mount::remove_tree(&state)?;
        erase_directory(&directory)
    })
    .await;
    match erased {
        Ok(Ok(())) => {
            daemon.sandboxes.remove(sandbox.id().as_str());
            announce::sandbox_deleted(daemon, sandbox);
        }
        Ok(Err(error)) => failures.push(format!("files: {error}")),
        Err(error) => failures.push(chain(&error)),
    }
    failures
}

/// Runs the teardown of a create that failed with `error`, and says what it left, if anything.
pub fn undone(error: Error, left: Vec<String>, doing: impl Into<String>) -> Error {
    if left.is_empty() {
        return error;
    }
    Error::Undone { doing: doing.into(), left, source: Box::new(error) }
}

/// Writes the record of an exited container and releases it, in the background: the threads that have to send the
/// event do not wait for a disk.
pub fn release_later(daemon: &Arc<Daemon>, container: Arc<Container>) {
    let daemon = daemon.clone();
    tokio::spawn(async move {
        let _one_at_a_time = container.operation.lock().await;
        if daemon.containers.find(container.id.as_str()).is_some() {
            let ended = container.clone();
            let saved = blocking(move || ended.save()).await.and_then(|saved| Ok(saved?));
            if let Err(error) = saved {
                let container = container.id.short();
                tracing::error!(container, error = chain(&error), "the end cannot be recorded");
            }
        }
        for failure in release_container(&daemon, &container).await {
            tracing::warn!(
                container = container.id.short(),
                failure,
                "left behind, to be retried at removal"
            );
        }
    });
}

/// Kills a monitor that does not answer before anything is asked of it: each question would wait in vain.
async fn end_wedged(daemon: &Daemon, sandbox: &Sandbox) {
    let Some(monitor) = sandbox.monitor() else { return };
    if let Err(error @ MonitorError::Deadline { .. }) = monitor.state().await {
        tracing::warn!(pod = sandbox.id().short(), error = chain(&error), "killing the monitor");
        sandbox.set_monitor(None);
        if let Some(failure) = kill_monitor(daemon, sandbox).await {
            tracing::error!(pod = sandbox.id().short(), failure, "a wedged monitor stays");
        }
    }
}

/// Ends the sandbox's monitor. One that does not listen, or that this daemon is not attached to, is killed.
async fn end_monitor(daemon: &Daemon, sandbox: &Sandbox) -> Option<String> {
    let monitor = sandbox.monitor();
    sandbox.set_monitor(None);
    if let Some(monitor) = monitor {
        match tokio::time::timeout(CALL, monitor.shutdown()).await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => {
                tracing::warn!(pod = sandbox.id().short(), error = chain(&error), "killing the monitor")
            }
            Err(_) => tracing::warn!(pod = sandbox.id().short(), "killing the monitor: it does not answer"),
        }
    }
    kill_monitor(daemon, sandbox).await
}

async fn kill_monitor(daemon: &Daemon, sandbox: &Sandbox) -> Option<String> {
    let directory = daemon.paths.pod_state(sandbox.id());
    let killed = blocking(move || Monitor::kill(&directory)).await;
    match killed {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("monitor: {error}")),
        Err(error) => Some(chain(&error)),
    }
}

async fn remove_cgroup(daemon: &Daemon, path: &str) -> Result<(), Error> {
    let cgroup = daemon.cgroup(path)?;
    let unit = Unit::parse(path).map_err(|error| Error::Internal(error.to_string()))?;
    // A scope has gone already, but for a half-made one; a slice stays until it is told.
    if let Some(unit) = unit
        && cgroup.exists()
        && let Err(error) = systemd::stop(&unit.name).await
    {
        return Err(Error::Internal(error));
    }
    Ok(blocking(move || cgroup.remove(KILLED)).await??)
}

/// Removes the files of commands that a dead daemon had started.
pub fn remove_process_files(bundle: &Path) {
    let entries = std::fs::read_dir(bundle).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| is_process_file(&entry.file_name().to_string_lossy())) {
        if let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::debug!(path = %entry.path().display(), %error, "stays until the container goes");
        }
    }
}

/// Name of the file of a command, in the container's bundle.
pub fn process_file(exec_id: &str) -> String {
    format!("exec-{}.json", &exec_id[..16])
}

fn is_process_file(name: &str) -> bool {
    name.trim_start_matches('.').starts_with("exec-")
}

/// Removes a record's directory, the record last.
fn erase_directory(directory: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == "record.json" {
            continue;
        }
        // Somebody else may remove the same at the same time.
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => mount::remove_tree(&entry.path()),
            Ok(_) => std::fs::remove_file(entry.path()),
            Err(error) => Err(error),
        };
        removed.or_else(|error| if error.kind() == NotFound { Ok(()) } else { Err(error) })?;
    }
    mount::remove_tree(directory)
}

fn failure((step, result): (&'static str, std::io::Result<()>)) -> Option<String> {
    result.err().map(|error| format!("{step}: {error}"))
}

fn note(failures: &mut Vec<String>, step: &str, result: Result<(), Error>) {
    failures.extend(result.err().map(|error| format!("{step}: {}", chain(&error))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_erased_by_two_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("pod");
        for _ in 0..50 {
            for name in ["upper/a/b", "upper/c", "work"] {
                std::fs::create_dir_all(record.join(name)).unwrap();
            }
            for name in ["record.json", "exit.json", "upper/a/f"] {
                std::fs::write(record.join(name), "x").unwrap();
            }
            let (one, other) = std::thread::scope(|scope| {
                let [one, other] = [0, 1].map(|_| scope.spawn(|| erase_directory(&record)));
                (one.join().unwrap(), other.join().unwrap())
            });
            assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
            assert!(erase_directory(&record).is_ok());
            assert!(!record.exists());
        }
    }

    #[test]
    fn only_files_of_commands_are_removed() {
        let bundle = tempfile::tempdir().unwrap();
        let command = process_file(&"a".repeat(64));
        for name in [command.as_str(), ".exec-0123.json.new", "config.json"] {
            std::fs::write(bundle.path().join(name), "{}").unwrap();
        }
        remove_process_files(bundle.path());
        let left: Vec<_> =
            std::fs::read_dir(bundle.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["config.json"]);
    }
}

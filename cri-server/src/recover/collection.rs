//! Undoes what no live object owns, when all records are known.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::{ANSWER, Quarantine, directories, settle};
use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::chain;
use crate::host::monitor::Monitor;
use crate::host::mount;
use crate::model::id::{ContainerId, PodId};
use crate::steps::{supervise, teardown};
use crate::store::container::{self, Container};

/// Undoes what no live object owns.
pub(super) async fn collect(daemon: &Arc<Daemon>, quarantine: Quarantine) {
    match quarantine.pods {
        true => settle_orphans(daemon).await,
        false => {
            collect_pods(daemon).await;
            erase_orphans(daemon).await;
        }
    }
    if !quarantine.containers {
        sweep_containers(daemon);
        // Containers hold leases on what they stand on.
        daemon.images.retain(HashSet::new()).await;
    }
}

async fn collect_pods(daemon: &Arc<Daemon>) {
    collect_attachments(daemon).await;
    for parent in [daemon.paths.pods(), daemon.paths.pod_states()] {
        for (id, directory) in directories::<PodId>(&parent).unwrap_or_default() {
            if daemon.sandboxes.find(id.as_str()).is_none() {
                end_stranger(&directory, &daemon.paths.pins(&id)).await;
                sweep(&directory, &[daemon.paths.shm(&id), daemon.paths.netns(&id)]);
            }
        }
    }
}

/// Ends the monitor of a pod without a record, if one lives, and takes its pins away: somebody has removed the record.
async fn end_stranger(directory: &Path, pins: &Path) {
    let (place, pins) = (directory.to_owned(), pins.to_owned());
    let ended = blocking(move || {
        Monitor::kill(&place)?;
        let mut pins = std::fs::read_dir(pins).into_iter().flatten().flatten();
        pins.try_for_each(|pin| mount::unpin(&pin.path()))
    });
    match ended.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(directory = %directory.display(), %error, "the monitor of a pod without a record stays");
        }
        Err(error) => tracing::error!(error = chain(&error), "a pod without a record cannot be looked at"),
    }
}

async fn collect_attachments(daemon: &Arc<Daemon>) {
    let attachments = match daemon.cni.attachments() {
        Ok(attachments) => attachments,
        Err(error) => {
            tracing::error!(error = chain(&error), "attachments to networks cannot be listed");
            return;
        }
    };
    // An unreadable record may be another runtime's.
    let ours = attachments.iter().filter(|attachment| attachment.state.is_some());
    for attachment in ours.filter(|attachment| daemon.sandboxes.find(attachment.pod.as_str()).is_none()) {
        if let Err(error) = daemon.cni.del(&attachment.pod).await {
            tracing::error!(
                pod = attachment.pod.short(),
                error = chain(&error),
                "its network is left behind"
            );
        }
    }
}

/// Containers whose pods have no readable record.
fn orphans(daemon: &Daemon) -> impl Iterator<Item = Arc<Container>> {
    let all = daemon.containers.all().into_iter();
    all.filter(|container| daemon.sandboxes.find(container.pod_id.as_str()).is_none())
}

/// Orphans may belong to a quarantined pod and run in it: what is known to have ended is told, and the monitors of the
/// others are listened to, so that their ends are told too.
async fn settle_orphans(daemon: &Arc<Daemon>) {
    let mut pods = HashSet::new();
    for container in orphans(daemon) {
        let ended = container::exit_path(&daemon.paths.container(&container.id)).exists();
        if ended || container.record().boot_id != daemon.boot_id {
            settle(daemon, &container);
        } else if !container.state().is_exited() {
            pods.insert(container.pod_id.clone());
        }
    }
    for pod in pods {
        let attached =
            tokio::time::timeout(ANSWER, Monitor::attach(&daemon.paths.monitor_socket(&pod))).await;
        match attached {
            Ok(Ok(monitor)) => supervise::listen(daemon, pod, monitor),
            _ => tracing::error!(
                pod = pod.short(),
                "its monitor is not heard: its containers stay as they are"
            ),
        }
    }
}

async fn erase_orphans(daemon: &Daemon) {
    for container in orphans(daemon) {
        for failure in teardown::erase_container(daemon, &container).await {
            tracing::error!(container = container.id.short(), failure, "a container without a pod stays");
        }
    }
}

fn sweep_containers(daemon: &Daemon) {
    for parent in [daemon.paths.containers(), daemon.paths.bundles()] {
        for (id, directory) in directories::<ContainerId>(&parent).unwrap_or_default() {
            if daemon.containers.find(id.as_str()).is_none() {
                if let Err(error) = mount::clear(&daemon.paths.mapped_volumes(&id)) {
                    tracing::error!(container = id.short(), %error, "volumes of a container without a record stay");
                    continue;
                }
                sweep(&directory, &teardown::mounts_of(&daemon.paths, &id));
            }
        }
    }
}

/// Unmounts and removes a directory without an owner.
fn sweep(directory: &Path, mounts: &[std::path::PathBuf]) {
    let swept =
        mounts.iter().try_for_each(|path| mount::unmount(path)).and_then(|()| mount::remove_tree(directory));
    if let Err(error) = swept {
        tracing::error!(directory = %directory.display(), %error, "a directory without an owner stays");
    }
}

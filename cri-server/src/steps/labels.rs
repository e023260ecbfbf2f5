//! SELinux labels of pods and containers, where the node has SELinux; nothing elsewhere.

use std::collections::BTreeSet;
use std::path::Path;

use proto::cri::{ContainerConfig, Mount, PodSandboxConfig};

use super::cri_config::invalid;
use super::{resolve, volumes};
use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::{Error, chain};
use crate::host::selinux;
use crate::spec::selinux::{Labels, may_relabel};
use crate::store::container::ContainerRecord;
use crate::store::sandbox::Sandbox;

/// Gives the images' layers the policy's label for what containers only read: once, as layers that are made later have
/// it from their directory. Where that fails, containers may not be able to read their files.
pub async fn label_layers(daemon: &Daemon) {
    let Some(contexts) = &daemon.selinux else { return };
    let (layers, label) = (daemon.images.layers().to_owned(), contexts.read_only());
    let labelled = blocking(move || selinux::relabel_each_once(&layers, &label)).await;
    match labelled {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the images' layers cannot be labelled"),
        Err(error) => tracing::error!(error = chain(&error), "the images' layers cannot be labelled"),
    }
}

/// Labels of a new pod, of a level that no record of a pod has: it is free again when that record is gone.
pub fn of_pod(daemon: &Daemon, config: &PodSandboxConfig) -> Result<Option<Labels>, Error> {
    let Some(contexts) = &daemon.selinux else { return Ok(None) };
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let asked = context.and_then(|context| context.selinux_options.as_ref());
    let pods = daemon.sandboxes.all();
    let taken: BTreeSet<String> = pods.iter().filter_map(|pod| pod.fixed.selinux.as_ref()?.level()).collect();
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::host("choose an SELinux level")(errno.into()))?;
    let limit = taken.len();
    let labels = contexts.pod(asked, &taken, u32::from_ne_bytes(random));
    let labels = labels.ok_or(Error::TooMany { what: "pods with an SELinux level of their own", limit })?;
    known("config.linux.security_context.selinux_options", labels).map(Some)
}

/// The labels as the kernel spells them: two spellings of a level are one level. Refuses what its policy does not know.
fn known(field: &'static str, labels: Labels) -> Result<Labels, Error> {
    let known = |label: String| {
        let spelled = selinux::canonical(&label).map_err(Error::host(format!("ask about label {label}")))?;
        spelled.ok_or_else(|| invalid(field, format!("the node's SELinux policy knows no label {label:?}")))
    };
    Ok(Labels { process: known(labels.process)?, mount: known(labels.mount)? })
}

/// Refuses what a container asks for and the node's policy does not know.
pub fn check_container(sandbox: &Sandbox, config: &ContainerConfig) -> Result<(), Error> {
    let labels = of_container(sandbox, config);
    labels.map_or(Ok(()), |labels| known("linux.security_context.selinux_options", labels).map(drop))
}

/// Labels of a container: its pod's, with what the request says.
pub fn of_container(sandbox: &Sandbox, config: &ContainerConfig) -> Option<Labels> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let asked = context.and_then(|context| context.selinux_options.as_ref());
    sandbox.fixed.selinux.as_ref().map(|labels| labels.with(asked))
}

/// Labels the container's anonymous volumes, and the mounts of which the request asks that. Blocks.
pub fn apply(daemon: &Daemon, record: &ContainerRecord, label: &str) -> Result<(), Error> {
    for volume in volumes::anonymous(daemon, record) {
        selinux::relabel(&volume.source, label).map_err(unlabelled(&volume.source))?;
    }
    let asked: Vec<&Mount> = record.config.mounts.iter().collect();
    if !asked.iter().any(|mount| mount.selinux_relabel) {
        return Ok(());
    }
    let sources = resolve::mount_sources(daemon, record)?;
    // An image has its label from its mount.
    let wanted =
        asked.iter().zip(&sources).filter(|(mount, _)| mount.selinux_relabel && mount.image.is_none());
    for (mount, source) in wanted {
        if !may_relabel(&source.path) {
            let path = source.path.display();
            let reason =
                format!("{path} belongs to the whole node and keeps its label, got {:?}", mount.host_path);
            return Err(invalid("config.mounts.selinux_relabel", reason));
        }
        selinux::relabel_resolved(&source.path, label).map_err(unlabelled(&source.path))?;
    }
    Ok(())
}

fn unlabelled(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::host(format!("label {}", path.display()))
}

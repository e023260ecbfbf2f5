//! Edits of CDI devices over a finished OCI specification.

use super::super::oci::{Device, DeviceRule, Mount, Spec};
use super::super::request::Request;
use super::super::{SpecError, mounts};
use super::edits::{Edits, Node};

/// What a device node gets when nobody says its permission bits: the OCI runtimes' default.
const FILE_MODE: u32 = 0o666;

/// Changes `spec` as the request's CDI devices want it.
pub(in crate::spec) fn apply(request: &Request<'_>, spec: &mut Spec) -> Result<(), SpecError> {
    let edits = request.inputs.cdi;
    for entry in &edits.env {
        set_env(&mut spec.process.env, entry);
    }
    for node in &edits.nodes {
        add_node(request, spec, node)?;
    }
    for mount in &edits.mounts {
        let place = mount.destination.to_string_lossy();
        let destination = mounts::destination("CDI_devices: mount", &place)?;
        add_mount(&mut spec.mounts, Mount { destination, ..mount.clone() });
    }
    spec.hooks = edits.hooks.clone();
    spec.linux.intel_rdt = edits.intel_rdt.clone();
    add_groups(request, spec, edits)
}

fn set_env(env: &mut Vec<String>, entry: &str) {
    let name = |entry: &str| entry.split('=').next().map(str::to_string);
    match env.iter_mut().find(|known| name(known) == name(entry)) {
        Some(known) => *known = entry.to_string(),
        None => env.push(entry.to_string()),
    }
}

/// A node is made, or where the pod has a user namespace, in which none can be, bound.
fn add_node(request: &Request<'_>, spec: &mut Spec, node: &Node) -> Result<(), SpecError> {
    let path = mounts::destination("CDI_devices: device node", &node.path.to_string_lossy())?;
    let user = &spec.process.user;
    if request.modes.user.is_some() {
        let options = ["bind", "rprivate"].map(String::from).to_vec();
        let source = node.host_path.clone();
        add_mount(&mut spec.mounts, Mount { destination: path, kind: "bind".into(), source, options });
    } else {
        spec.linux.devices.retain(|device| device.path != path);
        spec.linux.devices.push(Device {
            path,
            kind: node.kind.into(),
            major: node.major.into(),
            minor: node.minor.into(),
            file_mode: node.file_mode.unwrap_or(FILE_MODE),
            uid: node.uid.unwrap_or(user.uid),
            gid: node.gid.unwrap_or(user.gid),
        });
    }
    if node.kind != "p" && !node.access.is_empty() && !request.privileged() {
        spec.linux.resources.devices.push(DeviceRule {
            allow: true,
            kind: Some(node.kind.into()),
            major: Some(node.major.into()),
            minor: Some(node.minor.into()),
            access: node.access.clone(),
        });
    }
    Ok(())
}

/// Takes the place of a mount at the same destination, and comes before those below it, so that it hides none.
fn add_mount(mounts: &mut Vec<Mount>, mount: Mount) {
    mounts.retain(|known| known.destination != mount.destination);
    let is_below = |known: &Mount| known.destination.starts_with(&mount.destination);
    let at = mounts.iter().position(is_below).unwrap_or(mounts.len());
    mounts.insert(at, mount);
}

fn add_groups(request: &Request<'_>, spec: &mut Spec, edits: &Edits) -> Result<(), SpecError> {
    for gid in &edits.additional_gids {
        if request.modes.user.is_some_and(|range| range.on_node(*gid).is_none()) {
            let reason = format!("group {gid} of a device is not in the pod's user namespace");
            return Err(SpecError::invalid("CDI_devices", reason));
        }
        if !spec.process.user.additional_gids.contains(gid) {
            spec.process.user.additional_gids.push(*gid);
        }
    }
    Ok(())
}

//! CRI configuration + image configuration + facts → OCI runtime specification. Pure: no I/O, nothing async.
//!
//! [`generate`] is the whole of it: each matter (process, user, capabilities, seccomp, mounts, …) has a file that
//! turns its part of the [`Inputs`] into its part of the [`oci::Spec`]. What a request may not say is an error that
//! names the field. No image label decides anything here, and no annotation but those that name CDI devices.
//!
//! Must not know: gRPC, the file system, the OCI runtime's command line.

mod annotations;
pub mod capabilities;
pub mod cdi;
mod devices;
mod env;
mod error;
mod exec;
mod inputs;
mod lsm;
mod mounts;
mod namespaces;
pub mod oci;
mod paths;
mod process;
mod request;
mod resources;
pub mod seccomp;
pub mod selinux;
pub mod sysctl;
pub mod user_namespace;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
#[allow(clippy::disallowed_methods)] // A ring 1 test runs the OCI runtimes.
mod ring1_tests;

pub use error::SpecError;
pub use exec::{Terminal, exec_process};
pub use inputs::*;
pub use mounts::image_volumes;
pub use resources::linux_resources;

use request::Request;

/// Makes the OCI runtime specification of a container.
pub fn generate(inputs: &Inputs<'_>) -> Result<oci::Spec, SpecError> {
    let request = Request::new(inputs)?;
    let capabilities = capabilities::sets(&request)?;
    let mounts = mounts::assemble(&request)?;
    let resources = resources::resources(&request)?;
    let mut annotations = annotations::list(&request);
    annotations.extend(annotations::for_systemd(&request, &resources));
    let linux = oci::Linux {
        uid_mappings: request.id_mappings(),
        gid_mappings: request.id_mappings(),
        namespaces: namespaces::list(&request)?,
        devices: devices::nodes(&request)?,
        cgroups_path: inputs.cgroups_path.into(),
        resources,
        seccomp: seccomp::filter(&request, &capabilities)?,
        rootfs_propagation: mounts.rootfs_propagation,
        masked_paths: paths::masked(&request)?,
        readonly_paths: paths::readonly(&request)?,
        mount_label: lsm::selinux_mount_label(&request),
        intel_rdt: None,
    };
    let mut spec = oci::Spec {
        oci_version: inputs.handler.oci_version.clone(),
        process: process::process(&request, capabilities)?,
        root: oci::Root { path: inputs.rootfs.into(), readonly: request.security.readonly_rootfs },
        mounts: mounts.list,
        annotations,
        hooks: oci::Hooks::default(),
        linux,
    };
    cdi::apply(&request, &mut spec)?;
    Ok(spec)
}

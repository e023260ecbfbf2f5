//! Address management: host-local in this process, any other plugin as a program from CNI_PATH.

pub mod conf;
pub mod host_local;
pub mod range;
pub mod store;

use proto::cni::{Attachment, CniError, CniResult, Plugin, Request, Verb};

use crate::net::exec;
use host_local::HostLocal;

/// Gets addresses for an attachment. Whoever fails after this must [`del`].
///
/// # Errors
/// The IPAM plugin's.
pub fn add(request: &Request, attachment: &Attachment) -> Result<CniResult, CniError> {
    match foreign(request)? {
        None => HostLocal.allocate(request, attachment),
        Some(plugin) => {
            let program = exec::find(&plugin, &request.path)?;
            let finished = exec::run(&program, Verb::Add, &request.conf.to_bytes())?;
            Ok(finished.output(&plugin).result(request.conf.version)?.1)
        }
    }
}

/// Gives an attachment's addresses back.
///
/// # Errors
/// The IPAM plugin's.
pub fn del(request: &Request, attachment: &Attachment) -> Result<(), CniError> {
    match foreign(request)? {
        None => HostLocal.del(request, attachment, None),
        Some(plugin) => delegate(request, &plugin, Verb::Del),
    }
}

/// Verifies that an attachment's addresses are still its own.
///
/// # Errors
/// The IPAM plugin's.
pub fn check(request: &Request, attachment: &Attachment) -> Result<(), CniError> {
    match foreign(request)? {
        None => HostLocal.verify(request, attachment),
        Some(plugin) => delegate(request, &plugin, Verb::Check),
    }
}

/// Gives back the addresses of every attachment that is not valid.
///
/// # Errors
/// The IPAM plugin's.
pub fn gc(request: &Request) -> Result<(), CniError> {
    match foreign(request)? {
        None => HostLocal.gc(request),
        Some(plugin) => delegate(request, &plugin, Verb::Gc),
    }
}

/// Whether addresses could be had.
///
/// # Errors
/// The IPAM plugin's.
pub fn status(request: &Request) -> Result<(), CniError> {
    match foreign(request)? {
        None => HostLocal.status(request),
        Some(plugin) => delegate(request, &plugin, Verb::Status),
    }
}

fn delegate(request: &Request, plugin: &str, verb: Verb) -> Result<(), CniError> {
    let program = exec::find(plugin, &request.path)?;
    exec::run(&program, verb, &request.conf.to_bytes())?.output(plugin).success()
}

/// The IPAM plugin's name where it is not ours.
fn foreign(request: &Request) -> Result<Option<String>, CniError> {
    match request.conf.ipam_type()? {
        None => Err(CniError::config("ipam.type", "missing")),
        Some(plugin) if plugin == HostLocal.name() => Ok(None),
        Some(plugin) => Ok(Some(plugin)),
    }
}

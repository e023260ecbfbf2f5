//! Address management: host-local and static in this process, any other plugin as a program from CNI_PATH.

mod auto;
mod bitmap;
pub mod conf;
mod cooling;
pub mod fixed;
mod given;
pub mod host_local;
mod owners;
mod pool;
pub mod range;
pub mod store;

use std::net::IpAddr;
use std::path::Path;

use proto::cni::{Attachment, CniError, CniResult, Plugin, Request, Verb};

use crate::net::exec;
use fixed::Static;
pub use given::Past;
use host_local::HostLocal;

/// What an attachment got.
#[derive(Debug, Clone)]
pub struct Given {
    /// Addresses, routes and name servers.
    pub result: CniResult,
    /// Of all the addresses.
    pub past: Past,
}

/// Gets addresses for an attachment. Whoever fails after this must [`del`].
///
/// # Errors
/// The IPAM plugin's.
pub fn add(request: &Request, attachment: &Attachment, netns: &Path) -> Result<Given, CniError> {
    let unknown = |result| Given { result, past: Past::Unknown };
    match chosen(request)? {
        Chosen::Own(plugin) if plugin.name() == HostLocal.name() => {
            HostLocal.allocate(request, attachment, netns)
        }
        Chosen::Own(plugin) => plugin.add(request, attachment, netns).map(unknown),
        Chosen::Foreign(plugin) => {
            supported(&plugin)?;
            let program = exec::find(&plugin, &request.path)?;
            let finished = exec::run(&program, Verb::Add, &request.conf.to_bytes())?;
            Ok(unknown(finished.output(&plugin).result(request.conf.version)?.1))
        }
    }
}

/// Gives an attachment's addresses back.
///
/// # Errors
/// The IPAM plugin's.
pub fn del(request: &Request, attachment: &Attachment) -> Result<(), CniError> {
    match chosen(request)? {
        Chosen::Own(plugin) => plugin.del(request, attachment, None),
        Chosen::Foreign(plugin) => delegate(request, &plugin, Verb::Del),
    }
}

/// Verifies that an attachment's addresses are still its own.
///
/// # Errors
/// The IPAM plugin's.
pub fn check(request: &Request, attachment: &Attachment) -> Result<(), CniError> {
    match chosen(request)? {
        Chosen::Own(plugin) => plugin.check(request, attachment, Path::new("")),
        Chosen::Foreign(plugin) => supported(&plugin).and_then(|()| delegate(request, &plugin, Verb::Check)),
    }
}

/// The addresses that an attachment holds, as far as this process knows: none for a foreign plugin.
///
/// # Errors
/// The IPAM plugin's.
pub fn noted(request: &Request, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
    match request.conf.ipam_type()? {
        Some(name) if name == HostLocal.name() => HostLocal.noted(request, attachment),
        _ => Ok(Vec::new()),
    }
}

/// Gives back the addresses of every attachment that is not valid.
///
/// # Errors
/// The IPAM plugin's.
pub fn gc(request: &Request) -> Result<(), CniError> {
    match chosen(request)? {
        Chosen::Own(plugin) => plugin.gc(request),
        Chosen::Foreign(plugin) => delegate(request, &plugin, Verb::Gc),
    }
}

/// Whether addresses could be had.
///
/// # Errors
/// The IPAM plugin's.
pub fn status(request: &Request) -> Result<(), CniError> {
    match chosen(request)? {
        Chosen::Own(plugin) => plugin.status(request),
        Chosen::Foreign(plugin) => supported(&plugin).and_then(|()| delegate(request, &plugin, Verb::Status)),
    }
}

/// An IPAM plugin.
enum Chosen {
    /// In this process.
    Own(&'static dyn Plugin),
    /// A program.
    Foreign(String),
}

fn chosen(request: &Request) -> Result<Chosen, CniError> {
    const OWN: [&dyn Plugin; 2] = [&HostLocal, &Static];
    let name = request.conf.ipam_type()?.ok_or_else(|| CniError::config("ipam.type", "missing"))?;
    Ok(match OWN.into_iter().find(|plugin| plugin.name() == name) {
        Some(plugin) => Chosen::Own(plugin),
        None => Chosen::Foreign(name),
    })
}

/// DHCP wants an interface that is up before it has an address, and a daemon that renews: neither is here.
fn supported(plugin: &str) -> Result<(), CniError> {
    match plugin {
        "dhcp" => Err(CniError::unsupported("ipam.type", "\"dhcp\"")),
        _ => Ok(()),
    }
}

fn delegate(request: &Request, plugin: &str, verb: Verb) -> Result<(), CniError> {
    let program = exec::find(plugin, &request.path)?;
    exec::run(&program, verb, &request.conf.to_bytes())?.output(plugin).success()
}

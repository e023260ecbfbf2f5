//! The veth pair between host and pod: how it is made, found again and removed.
//!
//! That it cannot be made twice is what keeps two ADDs of one attachment apart; its host end's name, derived from the
//! owner, is how DEL finds it without any record.

use std::path::Path;
use std::time::{Duration, Instant};

use proto::cni::result::Interface;
use proto::cni::{Attachment, CniError, CniResult, ErrorCode};

use super::pod;
use crate::net::NetError;
use crate::net::link::{self, Link, VethPair};
use crate::net::netns::{NetNs, NetNsError};
use crate::net::removal::{remove, remove_quickly};
use crate::net::socket::Socket;
use crate::owner::Owner;

/// How long to wait for a link to carry frames.
const CARRIER_DEADLINE: Duration = Duration::from_secs(2);

/// Makes the pair. A host's end that an earlier attachment left, whose namespace it was is gone, makes way.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] where the container has an interface of the name.
pub fn make(host: &mut Socket, pair: &VethPair<'_>, owner: &Owner, netns: &NetNs) -> Result<(), CniError> {
    let error = match link::create_veth(host, pair) {
        Ok(()) => return Ok(()),
        Err(error) if error.is_exists() => error,
        Err(error) => return Err(error.into()),
    };
    let taken = netns.run(|| link::get(&mut Socket::route()?, pair.peer))??.is_some();
    match own_link(host, owner)? {
        Some(stale) if !taken => {
            remove(host, &stale)?;
            Ok(link::create_veth(host, pair)?)
        }
        Some(_) | None => {
            let msg = format!("the container already has an interface {}", pair.peer);
            Err(CniError::caused(ErrorCode::PLUGIN, msg, &error))
        }
    }
}

/// Waits until the host's end carries frames and `also` holds: carrier comes from a queue of the kernel, and what is
/// sent before it comes would be lost.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] where the link vanishes.
pub fn wait_for_carrier(
    host: &mut Socket,
    name: &str,
    also: &dyn Fn(&mut Socket) -> Result<bool, NetError>,
) -> Result<Link, CniError> {
    let deadline = Instant::now() + CARRIER_DEADLINE;
    let mut pause = Duration::from_micros(200);
    loop {
        let link = pod::expect_link(host, name)?;
        if (link.running && also(host)?) || Instant::now() >= deadline {
            return Ok(link);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(16));
    }
}

/// Removes the attachment's pair, and keeps `netfilter` open until the kernel has freed what was removed with it.
///
/// # Errors
/// What could not be removed.
pub fn remove_link(
    owner: &Owner,
    attachment: &Attachment,
    netns: Option<&Path>,
    netfilter: Option<Socket>,
) -> Result<(), CniError> {
    let mut host = Socket::route()?;
    if let Some(link) = own_link(&mut host, owner)? {
        return Ok(remove_quickly(host, &link, netfilter)?);
    }
    // Made by another plugin: its host end has a name that only the pod's end leads to.
    let Some(path) = netns else { return Ok(()) };
    let netns = match NetNs::open(path) {
        Ok(netns) => netns,
        Err(NetNsError::Gone(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if netns.is_own()? {
        return Ok(());
    }
    let mut inside = netns.run(Socket::route)??;
    let found = link::get(&mut inside, attachment.ifname.as_str())?;
    let Some(pod_end) = found.filter(|link| link.kind == "veth") else { return Ok(()) };
    // Where the path has come to mean another pod's namespace, the other end says whose.
    let other = pod_end.lower.map(|index| link::by_index(&mut host, index)).transpose()?.flatten();
    if other.is_some_and(|other| Owner::of_tag(&other.alias).is_some()) {
        return Ok(());
    }
    Ok(remove(&mut inside, &pod_end)?)
}

/// The host's end for CHECK: ours has a name of its own, another plugin's is named in the result, where it is the one
/// beside `bridge` that is not in the pod.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] where it is not there.
pub fn host_end(
    host: &mut Socket,
    owner: &Owner,
    result: &CniResult,
    bridge: &str,
) -> Result<Link, CniError> {
    let own = owner.host_link();
    if let Some(link) = link::get(host, &own)? {
        return Ok(link);
    }
    let is = |interface: &&Interface| interface.sandbox.is_empty() && interface.name != bridge;
    let named = result.interfaces.iter().find(is).map(|interface| interface.name.as_str());
    pod::find(host, named.unwrap_or(&own))
}

/// The host's end of the attachment's veth pair.
///
/// # Errors
/// [`NetError`].
pub fn own_link(host: &mut Socket, owner: &Owner) -> Result<Option<Link>, NetError> {
    let found = link::get(host, &owner.host_link())?;
    // Without a tag it was never finished; with another's it is another's.
    Ok(found.filter(|link| link.alias.is_empty() || link.alias == owner.tag()))
}

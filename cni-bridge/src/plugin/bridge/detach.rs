//! DEL and GC: addresses and rules first, then the link. Every step runs, whatever is gone already.

use std::path::Path;

use proto::cni::{Attachment, CniError, Request};

use crate::net::NetError;
use crate::net::link::{self, Link};
use crate::net::netns::{NetNs, NetNsError};
use crate::net::socket::Socket;
use crate::owner::{Owner, is_stale};
use crate::plugin::{collect, masquerade};
use crate::{ipam, net};

/// Undoes ADD.
///
/// # Errors
/// What could not be undone; the runtime is to call again.
pub fn del(request: &Request, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
    let owner = Owner::new(&request.conf.name, attachment)?;
    let addresses = match request.conf.ipam_type() {
        Ok(None) => Ok(()),
        Ok(Some(_)) => ipam::del(request, attachment),
        Err(error) => Err(error),
    };
    let rules = Socket::netfilter().and_then(|mut socket| masquerade::remove(&mut socket, &owner));
    let links = remove_link(&owner, attachment, netns);
    collect([addresses, rules.map_err(CniError::from), links])
}

/// Removes what belongs to the network and to no valid attachment.
///
/// # Errors
/// What could not be removed.
pub fn gc(request: &Request) -> Result<(), CniError> {
    let valid = request.conf.valid_attachments()?;
    let network = &request.conf.name;
    let addresses = match request.conf.ipam_type()? {
        None => Ok(()),
        Some(_) => ipam::gc(request),
    };
    let rules = Socket::netfilter().and_then(|mut socket| masquerade::gc(&mut socket, network, &valid));
    let links = Socket::route().and_then(|mut socket| {
        let all = link::list(&mut socket)?;
        let stale = all.iter().filter(|link| link.kind == "veth" && is_stale(&link.alias, network, &valid));
        stale.map(|link| remove(&mut socket, link)).fold(Ok(()), Result::and)
    });
    collect([addresses, rules.map_err(CniError::from), links.map_err(CniError::from)])
}

fn remove_link(owner: &Owner, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
    let mut host = Socket::route()?;
    match link::get(&mut host, &owner.host_link())? {
        // Without a tag it was never finished; with another's it is another's.
        Some(link) if link.alias.is_empty() || link.alias == owner.tag() => {
            return Ok(remove(&mut host, &link)?);
        }
        Some(_) | None => {}
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
    netns.run(|| -> Result<(), net::NetError> {
        let mut socket = Socket::route()?;
        match link::get(&mut socket, attachment.ifname.as_str())? {
            Some(link) if link.kind == "veth" => remove(&mut socket, &link),
            Some(_) | None => Ok(()),
        }
    })??;
    Ok(())
}

fn remove(socket: &mut Socket, link: &Link) -> Result<(), NetError> {
    match link::delete(socket, link) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

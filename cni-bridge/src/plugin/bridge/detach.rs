//! DEL and GC: addresses and rules first, then the link. Every step runs, whatever is gone already.

use std::path::Path;
use std::time::{Duration, Instant};

use proto::cni::{Attachment, CniError, ErrorCode, Request};

use crate::ipam;
use crate::net::link::{self, Link};
use crate::net::netns::{NetNs, NetNsError};
use crate::net::socket::Socket;
use crate::net::{NetError, background};
use crate::owner::{Owner, is_stale};
use crate::plugin::{collect, masquerade};

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
    let mut netfilter = Socket::netfilter();
    let rules = match &mut netfilter {
        Ok(socket) => masquerade::remove(socket, &owner).map_err(CniError::from),
        Err(_) => {
            netfilter.as_ref().map(|_| ()).map_err(|error| CniError::from_error(ErrorCode::PLUGIN, error))
        }
    };
    let links = remove_link(&owner, attachment, netns, netfilter.ok());
    collect([addresses, rules, links])
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
        let kept = valid.iter().filter_map(|attachment| Owner::new(network, attachment).ok());
        let kept: Vec<String> = kept.map(|owner| owner.host_link()).collect();
        let draft = |link: &Link| {
            link.alias.is_empty()
                && link.group == Owner::draft_group(network.as_str())
                && !kept.contains(&link.name)
        };
        let stale = |link: &&Link| link.kind == "veth" && (is_stale(&link.alias, network, &valid) || draft(link));
        all.iter().filter(stale).map(|link| remove(&mut socket, link)).fold(Ok(()), Result::and)
    });
    collect([addresses, rules.map_err(CniError::from), links.map_err(CniError::from)])
}

/// Removes the attachment's link, and keeps `netfilter` open until the kernel has freed what was removed with it.
fn remove_link(
    owner: &Owner,
    attachment: &Attachment,
    netns: Option<&Path>,
    netfilter: Option<Socket>,
) -> Result<(), CniError> {
    let mut host = Socket::route()?;
    if let Some(link) = own_link(&mut host, owner)? {
        return Ok(remove_quickly(host, link, netfilter)?);
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
    netns.run(|| -> Result<(), NetError> {
        let mut socket = Socket::route()?;
        match link::get(&mut socket, attachment.ifname.as_str())? {
            Some(link) if link.kind == "veth" => remove(&mut socket, &link),
            Some(_) | None => Ok(()),
        }
    })??;
    Ok(())
}

/// The host's end of the attachment's veth pair.
pub fn own_link(host: &mut Socket, owner: &Owner) -> Result<Option<Link>, NetError> {
    let found = link::get(host, &owner.host_link())?;
    // Without a tag it was never finished; with another's it is another's.
    Ok(found.filter(|link| link.alias.is_empty() || link.alias == owner.tag()))
}

/// Removes a link and returns when its name is free, without the kernel's waiting that follows.
fn remove_quickly(mut host: Socket, link: Link, netfilter: Option<Socket>) -> Result<(), NetError> {
    let mut own = Socket::route()?;
    background::leave(|| {
        let _ = link::delete(&mut own, &link);
        netfilter
    });
    let deadline = Instant::now() + Duration::from_millis(500);
    let same = |found: &Link| found.index == link.index && found.alias == link.alias;
    let mut pause = Duration::from_micros(100);
    while Instant::now() < deadline {
        std::thread::sleep(pause);
        if !link::get(&mut host, &link.name)?.as_ref().is_some_and(same) {
            return Ok(());
        }
        pause = (pause * 2).min(Duration::from_millis(4));
    }
    remove(&mut host, &link)
}

/// Removes a link that may be gone already.
pub fn remove(socket: &mut Socket, link: &Link) -> Result<(), NetError> {
    match link::delete(socket, link) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

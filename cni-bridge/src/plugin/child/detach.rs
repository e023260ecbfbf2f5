//! DEL and GC. Every step runs, whatever is gone already; nothing of others is touched.

use std::path::Path;

use proto::cni::{Attachment, CniError, Request};

use super::{parent, shim};
use crate::ipam;
use crate::ledger::{Entry, Ledger};
use crate::net::link::{self, Link};
use crate::net::netns::{NetNs, NetNsError};
use crate::net::socket::Socket;
use crate::net::{NetError, removal};
use crate::owner::{Owner, is_stale};
use crate::plugin::{collect, keys};

/// Undoes ADD of a plugin that makes links of `kind`.
///
/// # Errors
/// What could not be undone; the runtime is to call again.
pub fn del(
    request: &Request,
    attachment: &Attachment,
    netns: Option<&Path>,
    kind: &str,
) -> Result<(), CniError> {
    let owner = Owner::new(&request.conf.name, attachment)?;
    let shared = undo(request, &owner, netns, kind);
    let addresses = match request.conf.ipam_type() {
        Ok(None) => Ok(()),
        Ok(Some(_)) => ipam::del(request, attachment),
        Err(error) => Err(error),
    };
    collect([shared, addresses])
}

/// Removes what belongs to the network and to no valid attachment.
///
/// # Errors
/// What could not be removed.
pub fn gc(request: &Request, kind: &str) -> Result<(), CniError> {
    let valid = request.conf.valid_attachments()?;
    let state_dir = keys::state_dir(request)?;
    let owners = Ledger::open(&state_dir)?.owners()?;
    let stale = owners.iter().filter(|owner| is_stale(owner.tag(), &request.conf.name, &valid));
    let mut outcomes: Vec<_> = stale.map(|owner| undo(request, owner, None, kind)).collect();
    outcomes.push(parent::sweep(&mut Socket::route()?, &Ledger::open(&state_dir)?));
    outcomes.push(match request.conf.ipam_type()? {
        None => Ok(()),
        Some(_) => ipam::gc(request),
    });
    collect(outcomes)
}

/// Removes the pod's link and gives back what it shares; the ledger's entry goes last.
fn undo(request: &Request, owner: &Owner, netns: Option<&Path>, kind: &str) -> Result<(), CniError> {
    let state_dir = keys::state_dir(request)?;
    let entry = Ledger::open(&state_dir)?.read(owner)?;
    let shared = entry.as_ref().map_or(Ok(()), |entry| give_back(&state_dir, owner, entry));
    let links = remove_links(owner, netns, entry.as_ref(), kind);
    let undone = collect([shared, links]);
    if undone.is_ok() && entry.is_some() {
        Ledger::open(&state_dir)?.forget(owner)?;
    }
    undone
}

fn give_back(state_dir: &Path, owner: &Owner, entry: &Entry) -> Result<(), CniError> {
    let mut host = Socket::route()?;
    let ledger = Ledger::open(state_dir)?;
    let routes = match entry.shared.first() {
        Some(first) => shim::forget(&mut host, first, &entry.reached).map_err(CniError::from),
        None => Ok(()),
    };
    let links = entry.shared.iter().map(|name| parent::release(&mut host, &ledger, name, owner));
    let links: Vec<_> = links.collect();
    collect(std::iter::once(routes).chain(links))
}

/// Removes the pod's link where its namespace still is; the ledger knows the way where the runtime does not.
fn remove_links(
    owner: &Owner,
    netns: Option<&Path>,
    entry: Option<&Entry>,
    kind: &str,
) -> Result<(), CniError> {
    let known = entry.map(|entry| entry.path.as_path()).filter(|path| !path.as_os_str().is_empty());
    let Some(path) = netns.or(known) else { return Ok(()) };
    let netns = match NetNs::open(path) {
        Ok(netns) => netns,
        Err(NetNsError::Gone(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // The path may have come to mean another namespace.
    let expected = entry.and_then(|entry| entry.netns);
    let identity = netns.identity()?;
    if netns.is_own()? || expected.is_some_and(|expected| expected != identity) {
        return Ok(());
    }
    netns.run(|| -> Result<(), NetError> {
        let draft = owner.draft_link();
        for name in [owner.ifname(), &draft] {
            let mut socket = Socket::route()?;
            let found = link::get(&mut socket, name)?;
            if let Some(link) = found.filter(|link| link.kind == kind && is_mine(link, owner, entry)) {
                removal::remove_quickly(socket, &link, ())?;
            }
        }
        Ok(())
    })??;
    Ok(())
}

/// A link without a tag is the attachment's where the ledger knows the attachment, or nobody does: then another
/// plugin made it.
fn is_mine(link: &Link, owner: &Owner, entry: Option<&Entry>) -> bool {
    match Owner::of_tag(&link.alias) {
        Some(other) => other == *owner,
        None => entry.is_some() || link.alias.is_empty(),
    }
}

//! DEL and GC of the plugins whose pods are on a veth pair: rules first, then the link, then the addresses that both
//! had. Every step runs, whatever is gone already.

use std::path::Path;

use proto::cni::{Attachment, CniError, ErrorCode, Request};

use super::{collect, detaching, isolation, keys, masquerade, veth};
use crate::ipam;
use crate::net::link::{self, Link};
use crate::net::nft::Tables;
use crate::net::removal::remove;
use crate::net::socket::Socket;
use crate::owner::{Owner, is_stale};

/// Undoes ADD.
///
/// # Errors
/// What could not be undone; the runtime is to call again.
pub fn del(request: &Request, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
    let owner = Owner::new(&request.conf.name, attachment)?;
    detaching(request, &owner);
    let base = keys::state_dir_or_default(request);
    let mut netfilter = Socket::netfilter();
    let rules = match &mut netfilter {
        Ok(socket) => forget_rules(socket, &base, &owner),
        Err(_) => {
            netfilter.as_ref().map(|_| ()).map_err(|error| CniError::from_error(ErrorCode::PLUGIN, error))
        }
    };
    let links = veth::remove_link(&owner, attachment, netns, netfilter.ok());
    // Last: nobody may be given them while a rule or a link has them.
    let addresses = match request.conf.ipam_type() {
        Ok(None) => Ok(()),
        Ok(Some(_)) => ipam::del(request, attachment),
        Err(error) => Err(error),
    };
    collect([rules, links, addresses])
}

/// Asked of the tables, not of the configuration, which may have changed since ADD.
fn forget_rules(socket: &mut Socket, base: &Path, owner: &Owner) -> Result<(), CniError> {
    let tables = Tables::read(socket)?;
    let masquerade = masquerade::remove(socket, base, &tables, owner).map_err(CniError::from);
    collect([masquerade, isolation::remove(socket, base, &tables, owner).map_err(CniError::from)])
}

/// Removes what belongs to the network and to no valid attachment.
///
/// # Errors
/// What could not be removed.
pub fn gc(request: &Request) -> Result<(), CniError> {
    let valid = request.conf.valid_attachments()?;
    let network = &request.conf.name;
    let ipam_type = request.conf.ipam_type()?;
    let base = keys::state_dir_or_default(request);
    let rules = Socket::netfilter().and_then(|mut socket| {
        masquerade::gc(&mut socket, &base, network, &valid).and(isolation::gc(
            &mut socket,
            &base,
            network,
            &valid,
        ))
    });
    let links = Socket::route().and_then(|mut socket| {
        let all = link::list(&mut socket)?;
        let kept = valid.iter().filter_map(|attachment| Owner::new(network, attachment).ok());
        let kept: Vec<String> = kept.map(|owner| owner.host_link()).collect();
        // What an ADD that was killed has made and not yet tagged.
        let draft = |link: &Link| {
            link.alias.is_empty()
                && link.group == Owner::draft_group(network.as_str())
                && !kept.contains(&link.name)
        };
        let stale =
            |link: &&Link| link.kind == "veth" && (is_stale(&link.alias, network, &valid) || draft(link));
        all.iter().filter(stale).map(|link| remove(&mut socket, link)).fold(Ok(()), Result::and)
    });
    let addresses = match ipam_type {
        None => Ok(()),
        Some(_) => ipam::gc(request),
    };
    collect([rules.map_err(CniError::from), links.map_err(CniError::from), addresses])
}

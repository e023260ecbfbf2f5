//! portmap: ports of the host that lead into a pod.
//!
//! Chained after a plugin that gives the pod its addresses.

mod conditions;
mod conf;
mod flows;
mod free;
mod publish;
mod rules;

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::predecessor::{self, Trade};
use super::{collect, connectivity, damaged, prev_result};
use crate::net::nft::{self, Table};
use crate::net::socket::Socket;
use crate::net::{background, link, route, sysctl};
use crate::owner::{Owner, is_stale};
use conf::{Family, HostAddress, Mapping, PortMapConf, Snat, pod_addresses};
use publish::{Place, Publication};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct PortMap;

impl Plugin for PortMap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn add(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<CniResult, CniError> {
        let mut conf = PortMapConf::parse(request)?;
        let mut result = prev_result(request)?;
        if conf.mappings.is_empty() {
            return Ok(result);
        }
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = addresses(&conf, &result)?;
        let mut socket = Socket::netfilter()?;
        let asked: Vec<usize> = conf.to_be_found().collect();
        free::choose(&mut socket, &owner, &mut conf.mappings)?;
        let published = publish(&mut socket, &conf, (&owner, &addresses), Table::insert);
        if published.is_err() {
            // The first error is the one to report; what is left, DEL will find.
            let _ = publish::remove(&mut socket, &|tag| tag == owner.tag());
        }
        published?;
        result.port_mappings.extend(asked.into_iter().map(|index| free::told(&conf.mappings[index])));
        Ok(result)
    }

    fn del(&self, request: &Request, attachment: &Attachment, _: Option<&Path>) -> Result<(), CniError> {
        let owner = Owner::new(&request.conf.name, attachment)?;
        let mut socket = Socket::netfilter()?;
        let removed = publish::withdraw(&mut socket, &|tag| tag == owner.tag())?;
        if removed.is_empty() {
            return Ok(predecessor::forget(&mut socket, Trade::Ports, &|trace| trace.is_of(&owner))?);
        }
        // Flows to the pod lead nowhere any more, and the next ADD of their port forgets them too; finding them takes
        // a walk through the table that the whole machine shares.
        background::leave(move || {
            let _ = flows::after_removal(&mut socket, &removed);
            socket
        });
        Ok(())
    }

    fn check(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<(), CniError> {
        let mut conf = PortMapConf::parse(request)?;
        let result = prev_result(request)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = addresses(&conf, &result)?;
        let mut socket = Socket::netfilter()?;
        free::recall(&mut socket, &owner, &mut conf.mappings, &result)?;
        match damage(&mut socket, &conf, (&owner, &addresses))? {
            // What the reference plugin made serves as well.
            Some(_) if predecessor::has_any(&mut socket, Trade::Ports, &owner)? => Ok(()),
            Some(damage) => Err(damaged(format!("published ports: {damage}"))),
            None => Ok(()),
        }
    }

    fn repair(&self, request: &Request, attachment: &Attachment) -> Result<(), CniError> {
        let mut conf = PortMapConf::parse(request)?;
        let result = prev_result(request)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = addresses(&conf, &result)?;
        let mut socket = Socket::netfilter()?;
        free::recall(&mut socket, &owner, &mut conf.mappings, &result)?;
        free::choose(&mut socket, &owner, &mut conf.mappings)?;
        let whole = damage(&mut socket, &conf, (&owner, &addresses))?.is_none();
        if whole || predecessor::has_any(&mut socket, Trade::Ports, &owner)? {
            return Ok(());
        }
        publish(&mut socket, &conf, (&owner, &addresses), Table::mend)
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let valid = request.conf.valid_attachments()?;
        let stale = |tag: &str| is_stale(tag, &request.conf.name, &valid);
        let mut socket = Socket::netfilter()?;
        let removed = publish::remove(&mut socket, &stale);
        let of_other = |trace: &predecessor::Trace| trace.is_stale(&request.conf.name, &valid);
        let theirs = predecessor::forget(&mut socket, Trade::Ports, &of_other);
        collect([removed.map_err(CniError::from), theirs.map_err(CniError::from)])
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        PortMapConf::parse(request)?;
        let reachable = Socket::netfilter().and_then(|mut socket| nft::generation(&mut socket));
        reachable
            .map(|_| ())
            .map_err(|error| CniError { code: ErrorCode::NOT_AVAILABLE, ..CniError::from(error) })?;
        connectivity::expect_rules(&[conditions::table(), rules::table()])
    }
}

fn publish(
    socket: &mut Socket,
    conf: &PortMapConf,
    (owner, addresses): (&Owner, &[IpNet]),
    place: Place,
) -> Result<(), CniError> {
    Publication::new(conf, owner, addresses).place(socket, place)?;
    flows::after_publishing(socket, &conf.mappings, addresses)?;
    match needs_localnet(conf, addresses) {
        Some(pod) => open_localnet(socket, pod),
        None => Ok(()),
    }
}

/// What is missing, in words.
fn damage(
    socket: &mut Socket,
    conf: &PortMapConf,
    (owner, addresses): (&Owner, &[IpNet]),
) -> Result<Option<String>, CniError> {
    let damage = Publication::new(conf, owner, addresses).damage(socket)?;
    if damage.is_none() && needs_localnet(conf, addresses).is_some() {
        return Ok(rules::guard().damage(socket, &[], &[])?);
    }
    Ok(damage)
}

/// The pod's IPv4 address, where connections from 127.0.0.1 are to reach it.
fn needs_localnet(conf: &PortMapConf, addresses: &[IpNet]) -> Option<IpAddr> {
    let from_loopback = |mapping: &Mapping| match mapping.host {
        HostAddress::One(address) => address.is_ipv4() && address.is_loopback(),
        host => host.covers(Family::V4),
    };
    let wanted = conf.snat != Snat::No && conf.mappings.iter().any(from_loopback);
    let pod = addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4);
    pod.filter(|_| wanted)
}

/// Lets packets with loopback addresses out to the pod, after forbidding them the way in.
fn open_localnet(netfilter: &mut Socket, pod: IpAddr) -> Result<(), CniError> {
    let mut socket = Socket::route()?;
    let Some(index) = route::link_to(&mut socket, pod)? else { return Ok(()) };
    let Some(link) = link::by_index(&mut socket, index)? else { return Ok(()) };
    let key = format!("ipv4/conf/{}/route_localnet", link.name);
    let guard = rules::guard();
    if sysctl::get(&key)? == "1" && nft::chain_exists(netfilter, guard.name, "prerouting")? {
        return Ok(());
    }
    guard.ensure(netfilter)?;
    Ok(sysctl::set(&key, "1")?)
}

/// The pod's addresses; every mapping must have one to lead to.
fn addresses(conf: &PortMapConf, result: &CniResult) -> Result<Vec<IpNet>, CniError> {
    let addresses = pod_addresses(result);
    for (index, mapping) in conf.mappings.iter().enumerate() {
        if !addresses.iter().any(|address| mapping.host.covers(Family::of(address.addr()))) {
            let path = format!("runtimeConfig.portMappings[{index}]");
            return Err(CniError::config(&path, format!("{mapping}: the pod has no address of that family")));
        }
    }
    Ok(addresses)
}

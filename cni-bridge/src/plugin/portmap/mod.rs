//! portmap: ports of the host that lead into a pod.
//!
//! Chained after a plugin that gives the pod its addresses.

mod conf;
mod flows;
mod rules;

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::damaged;
use super::predecessor::{self, Trade};
use crate::net::nft::{self, InsertError};
use crate::net::socket::Socket;
use crate::net::{background, link, route, sysctl};
use crate::owner::{Owner, is_stale};
use conf::{Family, HostAddress, Mapping, PortMapConf, Snat, pod_addresses};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct PortMap;

impl Plugin for PortMap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn add(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<CniResult, CniError> {
        let conf = PortMapConf::parse(request)?;
        let result = prev_result(request)?;
        if !conf.mappings.is_empty() {
            let owner = Owner::new(&request.conf.name, attachment)?;
            publish(&conf, &owner, &addresses(&conf, &result)?)?;
        }
        Ok(result)
    }

    fn del(&self, request: &Request, attachment: &Attachment, _: Option<&Path>) -> Result<(), CniError> {
        let owner = Owner::new(&request.conf.name, attachment)?;
        let mut socket = Socket::netfilter()?;
        let removed = rules::table().remove(&mut socket, &|tag| tag == owner.tag())?;
        if removed.is_empty() {
            predecessor::forget(&mut socket, Trade::Ports, &|trace| trace.is_of(&owner))?;
        }
        let flows = flows::after_removal(&mut socket, &removed);
        if !removed.is_empty() {
            background::leave(move || socket);
        }
        Ok(flows?)
    }

    fn check(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<(), CniError> {
        let conf = PortMapConf::parse(request)?;
        let result = prev_result(request)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = addresses(&conf, &result)?;
        let published = rules::published(&owner, &conf.mappings, &addresses);
        let (sources, chains) = rules::sources(&owner, conf.snat, &addresses);
        let mut wanted: Vec<_> = published.into_iter().map(|(map, element, _)| (map, element)).collect();
        wanted.extend(sources);
        let mut socket = Socket::netfilter()?;
        let mut damage = rules::table().damage(&mut socket, &wanted, &chains)?;
        if damage.is_none() && needs_localnet(&conf, &addresses).is_some() {
            damage = rules::guard().damage(&mut socket, &[], &[])?;
        }
        match damage {
            // What the reference plugin made serves as well.
            Some(_) if predecessor::has_any(&mut socket, Trade::Ports, &owner)? => Ok(()),
            Some(damage) => Err(damaged(format!("published ports: {damage}"))),
            None => Ok(()),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let valid = request.conf.valid_attachments()?;
        let stale = |tag: &str| is_stale(tag, &request.conf.name, &valid);
        let mut socket = Socket::netfilter()?;
        let removed = rules::table().remove(&mut socket, &stale)?;
        let of_other = |trace: &predecessor::Trace| trace.is_stale(&request.conf.name, &valid);
        predecessor::forget(&mut socket, Trade::Ports, &of_other)?;
        Ok(flows::after_removal(&mut socket, &removed)?)
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        PortMapConf::parse(request)?;
        let reachable = Socket::netfilter().and_then(|mut socket| nft::generation(&mut socket));
        reachable
            .map(|_| ())
            .map_err(|error| CniError { code: ErrorCode::NOT_AVAILABLE, ..CniError::from(error) })
    }
}

fn publish(conf: &PortMapConf, owner: &Owner, addresses: &[IpNet]) -> Result<(), CniError> {
    let mut socket = Socket::netfilter()?;
    let published = rules::published(owner, &conf.mappings, addresses);
    for (map, _, index) in &published {
        refuse_overlap(&mut socket, owner, &conf.mappings[*index], map)?;
    }
    let (sources, chains) = rules::sources(owner, conf.snat, addresses);
    let inserted = rules::table().insert(&mut socket, &rules::wanted(&published, &sources), &chains);
    inserted.map_err(|error| match error {
        InsertError::Held { position, holder } => {
            let mapping = published.get(position).map(|(_, _, index)| &conf.mappings[*index]);
            held(mapping, &holder)
        }
        InsertError::Net(error) => error.into(),
    })?;
    flows::after_publishing(&mut socket, &conf.mappings, addresses)?;
    match needs_localnet(conf, addresses) {
        Some(pod) => open_localnet(&mut socket, pod),
        None => Ok(()),
    }
}

/// A port of all addresses and the same port of one address exclude each other, as they do for sockets.
fn refuse_overlap(
    socket: &mut Socket,
    owner: &Owner,
    mapping: &Mapping,
    address_map: &str,
) -> Result<(), CniError> {
    let table = rules::table().name;
    let key = rules::port_key(mapping);
    let holder = match mapping.host {
        HostAddress::One(_) => {
            let any = if address_map.ends_with('4') { "ports4" } else { "ports6" };
            nft::element(socket, table, any, &key)?.map(|found| found.owner)
        }
        HostAddress::Any | HostAddress::Any4 | HostAddress::Any6 => {
            let one = if address_map.ends_with('4') { "addrs4" } else { "addrs6" };
            let all = nft::elements(socket, table, one)?.unwrap_or_default();
            all.into_iter().find(|found| found.key.ends_with(&key)).map(|found| found.owner)
        }
    };
    match holder {
        Some(holder) if holder != owner.tag() => Err(held(Some(mapping), &holder)),
        Some(_) | None => Ok(()),
    }
}

fn held(mapping: Option<&Mapping>, holder: &str) -> CniError {
    let what = mapping.map_or_else(|| "a host port".to_owned(), Mapping::to_string);
    CniError::new(ErrorCode::PLUGIN, format!("{what} is already published for {holder}"))
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

fn prev_result(request: &Request) -> Result<CniResult, CniError> {
    let missing = || CniError::config("prevResult", "missing; portmap must be chained after another plugin");
    request.conf.prev_result()?.ok_or_else(missing)
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

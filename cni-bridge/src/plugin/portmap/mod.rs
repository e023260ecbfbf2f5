//! portmap: ports of the host that lead into a pod.
//!
//! Chained after a plugin that gives the pod its addresses.

mod conf;
mod flows;
mod free;
mod rules;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::predecessor::{self, Trade};
use super::{damaged, prev_result};
use crate::net::nft::{self, Conflict, Element, InsertError, OnDemand, Table};
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
        publish(&mut socket, &conf, (&owner, &addresses), Table::insert)?;
        result.port_mappings.extend(asked.into_iter().map(|index| free::told(&conf.mappings[index])));
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
        let mut conf = PortMapConf::parse(request)?;
        let result = prev_result(request)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = addresses(&conf, &result)?;
        let mut socket = Socket::netfilter()?;
        free::recall(&mut socket, &owner, &mut conf.mappings, &result)?;
        match damage(&mut socket, &conf, &owner, &addresses)? {
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
        if damage(&mut socket, &conf, &owner, &addresses)?.is_none() {
            return Ok(());
        }
        publish(&mut socket, &conf, (&owner, &addresses), Table::mend)
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

/// How elements get into a table: [`Table::insert`] or [`Table::mend`].
type Place =
    fn(&Table, &mut Socket, &[(&'static str, Element, Conflict)], &[OnDemand]) -> Result<(), InsertError>;

fn publish(
    socket: &mut Socket,
    conf: &PortMapConf,
    (owner, addresses): (&Owner, &[IpNet]),
    place: Place,
) -> Result<(), CniError> {
    let published = rules::published(owner, &conf.mappings, addresses);
    refuse_overlap(socket, owner, &conf.mappings, &published)?;
    let (sources, chains) = rules::sources(owner, conf.snat, addresses);
    let placed = place(&rules::table(), socket, &rules::wanted(&published, &sources), &chains);
    placed.map_err(|error| match error {
        InsertError::Held { position, holder } => {
            let mapping = published.get(position).map(|(_, _, index)| &conf.mappings[*index]);
            held(mapping, &holder)
        }
        InsertError::Net(error) => error.into(),
    })?;
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
    owner: &Owner,
    addresses: &[IpNet],
) -> Result<Option<String>, CniError> {
    let published = rules::published(owner, &conf.mappings, addresses);
    let (sources, chains) = rules::sources(owner, conf.snat, addresses);
    let mut wanted: Vec<_> = published.into_iter().map(|(map, element, _)| (map, element)).collect();
    wanted.extend(sources);
    let damage = rules::table().damage(socket, &wanted, &chains)?;
    if damage.is_none() && needs_localnet(conf, addresses).is_some() {
        return Ok(rules::guard().damage(socket, &[], &[])?);
    }
    Ok(damage)
}

/// A port of all addresses and the same port of one address exclude each other, as they do for sockets.
fn refuse_overlap(
    socket: &mut Socket,
    owner: &Owner,
    mappings: &[Mapping],
    published: &[(&'static str, Element, usize)],
) -> Result<(), CniError> {
    // Holders of ports of single addresses, by protocol and port; read when the first port of all addresses comes.
    let mut singles: BTreeMap<&str, BTreeMap<Vec<u8>, String>> = BTreeMap::new();
    for (map, _, index) in published {
        let mapping = &mappings[*index];
        let key = rules::port_key(mapping);
        let (any, one) = if map.ends_with('4') { ("ports4", "addrs4") } else { ("ports6", "addrs6") };
        let holder = match mapping.host {
            HostAddress::One(_) => {
                nft::element(socket, rules::table().id(), any, &key)?.map(|found| found.owner)
            }
            HostAddress::Any | HostAddress::Any4 | HostAddress::Any6 => {
                if !singles.contains_key(one) {
                    singles.insert(one, single_holders(socket, owner, one)?);
                }
                singles.get(one).and_then(|holders| holders.get(&key)).cloned()
            }
        };
        match holder {
            Some(holder) if holder != owner.tag() => return Err(held(Some(mapping), &holder)),
            Some(_) | None => {}
        }
    }
    Ok(())
}

/// Who else holds a port of a single address.
fn single_holders(
    socket: &mut Socket,
    owner: &Owner,
    map: &str,
) -> Result<BTreeMap<Vec<u8>, String>, CniError> {
    let all = nft::elements(socket, rules::table().id(), map)?.unwrap_or_default();
    let others = all.into_iter().filter(|found| found.owner != owner.tag());
    let entry = |found: Element| Some((found.key.last_chunk::<8>()?.to_vec(), found.owner));
    Ok(others.filter_map(entry).collect())
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

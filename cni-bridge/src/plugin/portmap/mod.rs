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

use super::predecessor::{self, Trace, Trade};
use super::{attaching, collect, connectivity, damaged, detaching, keys, prev_result};
use crate::net::link::{self, Link};
use crate::net::nft::{self, Table, Tables};
use crate::net::socket::Socket;
use crate::net::{NetError, background, route, sysctl};
use crate::owner::{Owner, is_stale};
use crate::turn::{Subject, Turn};
use conf::{Family, HostAddress, Mapping, PortMapConf, Snat, pod_addresses};
use publish::Publication;

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
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = addresses(&mut conf, &result, attachment)?;
        if conf.mappings.is_empty() {
            return Ok(result);
        }
        attaching(request, &owner);
        let mut socket = Socket::netfilter()?;
        let asked: Vec<usize> = conf.to_be_found().collect();
        let base = keys::state_dir(request)?;
        let placed = reserve(&mut socket, &base, &mut conf, (&owner, &addresses));
        let published = placed.and_then(|()| open(&mut socket, &conf, &addresses, flows::to_ports));
        if published.is_err() {
            // The first error is the one to report; what is left, DEL will find.
            let _ = publish::remove(&mut socket, &base, &|tag| tag == owner.tag());
        }
        published?;
        result.port_mappings.extend(asked.into_iter().map(|index| free::told(&conf.mappings[index])));
        Ok(result)
    }

    fn del(&self, request: &Request, attachment: &Attachment, _: Option<&Path>) -> Result<(), CniError> {
        let owner = Owner::new(&request.conf.name, attachment)?;
        detaching(request, &owner);
        let mut socket = Socket::netfilter()?;
        let tables = Tables::read(&mut socket)?;
        let removed =
            publish::withdraw_of(&mut socket, &keys::state_dir_or_default(request), &tables, &owner)?;
        if removed.is_empty() {
            let of_owner = |trace: &Trace| trace.is_of(&owner);
            return Ok(predecessor::forget(&mut socket, &tables, Trade::Ports, &of_owner)?);
        }
        // Flows to the pod lead nowhere any more, and the next ADD of their port forgets them too; finding them takes
        // a walk through the table that the whole machine shares.
        background::at_end(move || {
            let _ = flows::after_removal(&mut socket, &removed);
            // Open as long as the child is.
            std::mem::forget(socket);
        });
        Ok(())
    }

    fn check(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<(), CniError> {
        let mut conf = PortMapConf::parse(request)?;
        let result = prev_result(request)?;
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = addresses(&mut conf, &result, attachment)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
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
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = addresses(&mut conf, &result, attachment)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let mut socket = Socket::netfilter()?;
        let base = keys::state_dir(request)?;
        let _turn = Turn::take(&base, Subject::Ports)?;
        free::recall(&mut socket, &owner, &mut conf.mappings, &result)?;
        free::choose(&mut socket, &owner, &mut conf.mappings)?;
        let whole = damage(&mut socket, &conf, (&owner, &addresses))?.is_none();
        if whole || predecessor::has_any(&mut socket, Trade::Ports, &owner)? {
            return Ok(());
        }
        Publication::new(&conf, &owner, &addresses).place(&mut socket, &base, Table::mend)?;
        mend_guard(&mut socket, &conf, &addresses)?;
        open(&mut socket, &conf, &addresses, flows::to_others)
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let valid = request.conf.valid_attachments()?;
        let stale = |tag: &str| is_stale(tag, &request.conf.name, &valid);
        let mut socket = Socket::netfilter()?;
        let removed = publish::remove(&mut socket, &keys::state_dir_or_default(request), &stale);
        let of_other = |trace: &Trace| trace.is_stale(&request.conf.name, &valid);
        let theirs = Tables::read(&mut socket)
            .and_then(|tables| predecessor::forget(&mut socket, &tables, Trade::Ports, &of_other));
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

/// Chooses free ports where some are asked for, and puts all in place, while nobody else does. `base` is where locks
/// are.
fn reserve(
    socket: &mut Socket,
    base: &Path,
    conf: &mut PortMapConf,
    (owner, addresses): (&Owner, &[IpNet]),
) -> Result<(), CniError> {
    let _turn = Turn::take(base, Subject::Ports)?;
    let asked: Vec<usize> = conf.to_be_found().collect();
    let mut refused: Option<(Vec<u16>, CniError)> = None;
    loop {
        free::choose(socket, owner, &mut conf.mappings)?;
        let chosen: Vec<u16> = asked.iter().map(|index| conf.mappings[*index].host_port).collect();
        match refused {
            // It is not a chosen port that somebody has.
            Some((before, error)) if before == chosen => return Err(error),
            _ => {}
        }
        let placed = Publication::new(conf, owner, addresses).place(socket, base, Table::insert);
        let Err(error) = placed else { return Ok(()) };
        // Somebody who does not wait for turns has taken one meanwhile: the next choice passes it over.
        let tables = Tables::read(socket)?;
        publish::withdraw_of(socket, base, &tables, owner)?;
        asked.iter().for_each(|index| conf.mappings[*index].host_port = 0);
        refused = Some((chosen, error));
    }
}

/// What ports need beside their elements.
fn open(
    socket: &mut Socket,
    conf: &PortMapConf,
    addresses: &[IpNet],
    forget: flows::Forget,
) -> Result<(), CniError> {
    // Without it flows go on as they began, until they rest.
    if let Err(error) = forget(socket, &conf.mappings, addresses) {
        eprintln!("portmap: flows that began before are not forgotten: {}", CniError::from(error));
    }
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
    let pod = needs_localnet(conf, addresses).filter(|_| damage.is_none());
    let Some(pod) = pod else { return Ok(damage) };
    if let Some(damage) = rules::guard().damage(socket, &[], &[])? {
        return Ok(Some(damage));
    }
    let closed = link_to(pod)?.filter(|link| !link.parameters.routes_localnet);
    Ok(closed.map(|link| format!("{} is off", localnet_key(&link))))
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
    let Some(link) = link_to(pod)? else { return Ok(()) };
    let guard = rules::guard();
    if link.parameters.routes_localnet && nft::chain_exists(netfilter, guard.name, "prerouting")? {
        return Ok(());
    }
    guard.ensure(netfilter)?;
    Ok(sysctl::set(&localnet_key(&link), "1")?)
}

/// Makes the guard of the loopback whole, where connections from there are to reach the pod.
fn mend_guard(netfilter: &mut Socket, conf: &PortMapConf, addresses: &[IpNet]) -> Result<(), CniError> {
    let guard = rules::guard();
    if needs_localnet(conf, addresses).is_none() || guard.damage(netfilter, &[], &[])?.is_none() {
        return Ok(());
    }
    let mended = guard.mend(netfilter, &[], &[]);
    mended.map_err(|error| CniError::from_error(ErrorCode::PLUGIN, &error))
}

/// The link that leads to the pod.
fn link_to(pod: IpAddr) -> Result<Option<Link>, NetError> {
    let mut socket = Socket::route()?;
    let index = route::link_to(&mut socket, pod)?;
    Ok(index.map(|index| link::by_index(&mut socket, index)).transpose()?.flatten())
}

fn localnet_key(link: &Link) -> String {
    format!("ipv4/conf/{}/route_localnet", link.name)
}

/// The pod's addresses. Mappings of families that it has no address of are passed over: a pod may be published by both
/// in networks that have one.
fn addresses(
    conf: &mut PortMapConf,
    result: &CniResult,
    attachment: &Attachment,
) -> Result<Vec<IpNet>, CniError> {
    let addresses = pod_addresses(result, &attachment.ifname);
    if let (true, Some(mapping)) = (addresses.is_empty(), conf.mappings.first()) {
        let msg = format!("{mapping}: the pod has no address");
        return Err(CniError::config("runtimeConfig.portMappings[0]", msg));
    }
    conf.mappings.retain(|mapping| {
        let served = addresses.iter().any(|address| mapping.host.covers(Family::of(address.addr())));
        if !served {
            eprintln!("portmap: {mapping} is not published: the pod has no address of that family");
        }
        served
    });
    Ok(addresses)
}

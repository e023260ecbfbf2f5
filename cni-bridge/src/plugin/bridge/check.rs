//! CHECK: is everything that ADD made still there and as it was.

use ipnet::IpNet;
use proto::cni::result::Interface;
use proto::cni::{Attachment, CniError, CniResult, Request};

use super::attach::gateway_of;
use super::conf::{BridgeConf, ContainerLink, Gateway};
use super::port;
use crate::ipam;
use crate::net::link::Link;
use crate::net::netns::NetNs;
use crate::net::socket::Socket;
use crate::net::{addr, sysctl};
use crate::owner::Owner;
use crate::plugin::{connectivity, damaged, isolation, masquerade, pod, veth};

/// Verifies links, addresses, routes, address reservations and rules.
///
/// # Errors
/// [`proto::cni::ErrorCode::PLUGIN`] with the first damage found.
pub fn check(
    request: &Request,
    conf: &BridgeConf,
    attachment: &Attachment,
    netns: &NetNs,
) -> Result<(), CniError> {
    let owner = Owner::new(&request.conf.name, attachment)?;
    let result = pod::previous(request)?;
    let index = pod::interface_index(&result, attachment)?;
    pod::expect_sandbox(&result, index, netns)?;
    check_host(conf, &owner, &result, &result.interfaces[index].mac)?;
    let mut inside = netns.run(Socket::route)??;
    check_pod(&mut inside, (request, conf), &result, index)?;
    if conf.has_ipam {
        ipam::check(request, attachment)?;
    }
    let addresses = pod::addresses_of(&result, index);
    check_rules(conf, &owner, &addresses)
}

fn check_rules(conf: &BridgeConf, owner: &Owner, addresses: &[IpNet]) -> Result<(), CniError> {
    let mut socket = Socket::netfilter()?;
    let masquerade = match conf.ip_masq {
        true => masquerade::damage(&mut socket, owner, addresses)?,
        false => None,
    };
    let isolation = match conf.isolated {
        true => {
            let network = &conf.gateway_link();
            isolation::damage(&mut socket, isolation::Pod { owner, network, addresses })?
        }
        false => None,
    };
    match (masquerade, isolation) {
        (Some(damage), _) => Err(damaged(format!("masquerade: {damage}"))),
        (None, Some(damage)) => Err(damaged(format!("isolateNetworks: {damage}"))),
        (None, None) => Ok(()),
    }
}

fn check_host(conf: &BridgeConf, owner: &Owner, result: &CniResult, mac: &str) -> Result<(), CniError> {
    let mut socket = Socket::route()?;
    let bridge = pod::find(&mut socket, &conf.bridge)?;
    if bridge.kind != "bridge" || !bridge.up {
        return Err(damaged(format!("{} is not a bridge that is up", conf.bridge)));
    }
    if conf.promiscuous && !bridge.promiscuous {
        return Err(damaged(format!("bridge {} does not receive every frame any more", bridge.name)));
    }
    let host_end = veth::host_end(&mut socket, owner, result, &conf.bridge)?;
    for link in [&bridge, &host_end] {
        expect_mtu(conf, result, link)?;
    }
    if host_end.controller != Some(bridge.index) || !host_end.up {
        let what = format!("link {} is not a port of {} that is up", host_end.name, bridge.name);
        return Err(damaged(what));
    }
    port::check(&mut socket, conf, &host_end, mac)?;
    if conf.gateway == Gateway::No {
        return Ok(());
    }
    let link = pod::find(&mut socket, &conf.gateway_link())?;
    if let Some(id) = conf.vlan {
        port::check_gateway(&mut socket, &bridge, &link, id)?;
    }
    let found = addr::list(&mut socket, &link)?;
    for gateway in result.ips.iter().filter_map(gateway_of) {
        if !found.contains(&gateway) {
            return Err(damaged(format!("bridge {} lacks the gateway address {gateway}", link.name)));
        }
        let key = connectivity::forwarding(gateway.addr());
        if sysctl::get(key)? != "1" {
            return Err(damaged(format!("forwarding is off ({key})")));
        }
    }
    Ok(())
}

/// Where an MTU is configured, frames of the size that ADD found still get through.
fn expect_mtu(conf: &BridgeConf, result: &CniResult, link: &Link) -> Result<(), CniError> {
    let is = |found: &&Interface| found.sandbox.is_empty() && found.name == link.name;
    let told = result.interfaces.iter().find(is).map(|found| found.mtu);
    match told.filter(|mtu| conf.mtu.is_some() && link.mtu < *mtu) {
        Some(mtu) => Err(damaged(format!("link {} has MTU {}, not {mtu}", link.name, link.mtu))),
        None => Ok(()),
    }
}

fn check_pod(
    inside: &mut Socket,
    (request, conf): (&Request, &BridgeConf),
    result: &CniResult,
    index: usize,
) -> Result<(), CniError> {
    let link = pod::find(inside, &result.interfaces[index].name)?;
    let expect_up = conf.container_link == ContainerLink::Up;
    if link.kind != "veth" || (expect_up && !link.up) {
        return Err(damaged(format!("{} is not a veth link that is up", link.name)));
    }
    pod::check(inside, request, &link, (result, index))
}

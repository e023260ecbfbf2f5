//! The bridge itself: made if it is not there, never removed.

use std::net::IpAddr;

use ipnet::IpNet;
use proto::cni::{Attachment, CniError, ErrorCode, Request};

use super::conf::BridgeConf;
use crate::ipam;
use crate::ledger::Ledger;
use crate::net::link::{self, Link, Mac, OWN_GROUP};
use crate::net::socket::Socket;
use crate::net::sublink::Detail;
use crate::net::{NetError, addr, sysctl};
use crate::owner::Owner;
use crate::plugin::connectivity;

/// The bridge, made and set as configured.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] where the name belongs to another kind of link;
/// [`ErrorCode::IO_FAILURE`] where the kernel cannot tell VLANs apart; [`ErrorCode::PLUGIN`].
pub fn ensure(socket: &mut Socket, conf: &BridgeConf) -> Result<Link, CniError> {
    let bridge = match link::get(socket, &conf.bridge)? {
        Some(bridge) => bridge,
        None => create(socket, conf)?,
    };
    if bridge.kind != "bridge" {
        return Err(CniError::config("bridge", format!("link {} exists and is no bridge", conf.bridge)));
    }
    if conf.filters_vlans() {
        filter_vlans(socket, &bridge)?;
    }
    // At every ADD: whoever made the bridge may not have come to it, or not thought of it.
    if !bridge.parameters.own_routes {
        sysctl::own_routes(&conf.bridge)?;
    }
    let mut changes = Vec::new();
    if !bridge.up {
        changes.push(link::set_up(&bridge));
    }
    if conf.promiscuous && !bridge.promiscuous {
        changes.push(link::set_promiscuous(&bridge));
    }
    socket.apply(&changes)?;
    Ok(bridge)
}

/// For STATUS: that the bridge does not cut off those who are on it.
///
/// # Errors
/// [`ErrorCode::LIMITED_CONNECTIVITY`].
pub fn expect_open(socket: &mut Socket, conf: &BridgeConf) -> Result<(), CniError> {
    let down = link::get(socket, &conf.bridge)?.filter(|bridge| bridge.kind == "bridge" && !bridge.up);
    let Some(bridge) = down else { return Ok(()) };
    if link::list(socket)?.iter().any(|port| port.controller == Some(bridge.index)) {
        let msg = format!("bridge {} is down, and links are on it", bridge.name);
        return Err(CniError::new(ErrorCode::LIMITED_CONNECTIVITY, msg));
    }
    Ok(())
}

fn create(socket: &mut Socket, conf: &BridgeConf) -> Result<Link, CniError> {
    match link::create_bridge(socket, &conf.bridge, Mac::random()?, conf.mtu) {
        Ok(()) => {}
        // Another ADD was faster.
        Err(error) if error.is_exists() => {}
        Err(error) => return Err(error.into()),
    }
    link::get(socket, &conf.bridge)?
        .ok_or_else(|| CniError::new(ErrorCode::PLUGIN, format!("bridge {} vanished", conf.bridge)))
}

/// A bridge that others made without filtering keeps its ways.
fn filter_vlans(socket: &mut Socket, bridge: &Link) -> Result<(), CniError> {
    let lacks = || {
        let msg = "the kernel does not filter VLANs on bridges (CONFIG_BRIDGE_VLAN_FILTERING)";
        CniError::new(ErrorCode::IO_FAILURE, msg)
    };
    match bridge.detail {
        Detail::Bridge(Some(true)) => Ok(()),
        Detail::Bridge(Some(false)) if bridge.group != OWN_GROUP => {
            Err(CniError::config("bridge", format!("{} does not filter VLANs", bridge.name)))
        }
        Detail::Bridge(None) => Err(lacks()),
        _ => match socket.apply(&[link::set_vlan_filtering(bridge)]) {
            Err(error) if error.is_unsupported() => Err(lacks()),
            other => Ok(other?),
        },
    }
}

/// Gives `link`, the bridge or its link in a VLAN, the gateway address of a pod's subnet, and turns forwarding on.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] where it has another address of the subnet's family, unless `forceAddress` replaces that, or
/// the bridge is Berth's and no port uses the other.
pub fn ensure_gateway(
    socket: &mut Socket,
    conf: &BridgeConf,
    asked: (&Request, &Owner),
    link: &Link,
    gateway: IpNet,
) -> Result<(), CniError> {
    // An address that is there has been settled: each comes under the lock, after those that conflict have gone.
    if !addr::list(socket, link)?.contains(&gateway) {
        let _ordered = Ledger::open(&conf.state_dir)?;
        settle(socket, conf, asked, link, gateway)?;
        match socket.apply(&[addr::add(link, gateway)]) {
            Err(error) if error.is_exists() => {}
            other => other?,
        }
    }
    Ok(connectivity::forward(socket, std::iter::once(gateway.addr()))?)
}

/// The address is new: an older one that conflicts makes way, or the new one must not come.
fn settle(
    socket: &mut Socket,
    conf: &BridgeConf,
    asked: (&Request, &Owner),
    link: &Link,
    gateway: IpNet,
) -> Result<(), CniError> {
    let conflicting = |other: &&IpNet| match (other, &gateway) {
        (IpNet::V4(_), IpNet::V4(_)) => **other != gateway,
        // IPv6 subnets live side by side unless they overlap.
        (IpNet::V6(_), IpNet::V6(_)) => {
            **other != gateway && (other.contains(&gateway.addr()) || gateway.contains(&other.addr()))
        }
        _ => false,
    };
    let found = addr::list(socket, link)?;
    let others: Vec<IpNet> = found.iter().filter(conflicting).copied().collect();
    let Some(first) = others.first() else { return Ok(()) };
    if conf.force_address || (link.group == OWN_GROUP && !is_used(socket, asked, link, &others)?) {
        let changes: Vec<_> = others.iter().map(|other| addr::remove(link, *other)).collect();
        return ignore_missing(socket.apply(&changes)).map_err(CniError::from);
    }
    let msg = format!("{:?} already has an IP address different from {gateway}: {first}", link.name);
    Err(CniError::new(ErrorCode::PLUGIN, msg))
}

/// Whether a port of the bridge, other than the owner's own, is of a pod with an address in one of the subnets; of a
/// port whose pod's addresses are not known here, that is assumed.
fn is_used(
    socket: &mut Socket,
    (request, owner): (&Request, &Owner),
    bridge: &Link,
    subnets: &[IpNet],
) -> Result<bool, CniError> {
    for port in link::list(socket)?.iter().filter(|link| link.controller == Some(bridge.index)) {
        if port.alias == owner.tag() {
            continue;
        }
        let addresses = match attachment_of(request, port) {
            Some(attachment) => ipam::noted(request, &attachment)?,
            None => Vec::new(),
        };
        let meets = |address: &IpAddr| subnets.iter().any(|subnet| subnet.contains(address));
        if addresses.is_empty() || addresses.iter().any(meets) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whose a port is, if it is of this network.
fn attachment_of(request: &Request, port: &Link) -> Option<Attachment> {
    let mut parts = port.alias.splitn(3, '/');
    let network = parts.next()?;
    let (container_id, ifname) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    (network == request.conf.name.as_str()).then_some(Attachment { container_id, ifname })
}

fn ignore_missing(outcome: Result<(), NetError>) -> Result<(), NetError> {
    match outcome {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

//! CHECK: is everything that ADD made still there and as it was.
//!
//! Hardware address and MTU of the pod's interface are compared with `prevResult` only where that names them:
//! plugins further down the chain may change both, and say so there.

use proto::cni::result::Interface;
use proto::cni::{Attachment, CniError, CniResult, Request};

use super::attach::{gateway_of, next_hop};
use super::conf::{BridgeConf, Gateway};
use crate::ipam;
use crate::net::link::{self, Link};
use crate::net::netns::NetNs;
use crate::net::socket::Socket;
use crate::net::{NetError, addr, route, sysctl};
use crate::owner::Owner;
use crate::plugin::{damaged, masquerade};

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
    let missing = || CniError::config("prevResult", "missing; CHECK needs it");
    let result = request.conf.prev_result()?.ok_or_else(missing)?;
    let index = pod_interface(&result, attachment)?;
    check_host(conf, &owner, &result)?;
    netns.run(|| check_pod(&result, index, attachment))??;
    if conf.has_ipam {
        ipam::check(request, attachment)?;
    }
    if conf.ip_masq {
        let own = result.ips.iter().filter(|ip| ip.interface == Some(index)).map(|ip| ip.address);
        let addresses: Vec<_> = own.collect();
        if let Some(damage) = masquerade::damage(&mut Socket::netfilter()?, &owner, &addresses)? {
            return Err(damaged(format!("masquerade: {damage}")));
        }
    }
    Ok(())
}

/// Index of the pod's interface in the result.
fn pod_interface(result: &CniResult, attachment: &Attachment) -> Result<usize, CniError> {
    let is =
        |interface: &Interface| !interface.sandbox.is_empty() && interface.name == attachment.ifname.as_str();
    result.interfaces.iter().position(is).ok_or_else(|| {
        CniError::config("prevResult.interfaces", format!("no container interface {}", attachment.ifname))
    })
}

fn check_host(conf: &BridgeConf, owner: &Owner, result: &CniResult) -> Result<(), CniError> {
    let mut socket = Socket::route()?;
    let bridge = find(&mut socket, &conf.bridge)?;
    if bridge.kind != "bridge" || !bridge.up {
        return Err(damaged(format!("{} is not a bridge that is up", conf.bridge)));
    }
    let port = host_end(&mut socket, conf, owner, result)?;
    if port.controller != Some(bridge.index) || !port.up {
        return Err(damaged(format!("link {} is not a port of {} that is up", port.name, bridge.name)));
    }
    if (port.hairpin, port.isolated) != (conf.port.hairpin, conf.port.isolated) {
        return Err(damaged(format!("the port mode of link {} differs from the configuration", port.name)));
    }
    if conf.gateway == Gateway::No {
        return Ok(());
    }
    let found = addr::list(&mut socket, &bridge)?;
    for gateway in result.ips.iter().filter_map(gateway_of) {
        if !found.contains(&gateway) {
            return Err(damaged(format!("bridge {} lacks the gateway address {gateway}", bridge.name)));
        }
        let key = if gateway.addr().is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
        if sysctl::get(key)? != "1" {
            return Err(damaged(format!("forwarding is off ({key})")));
        }
    }
    Ok(())
}

/// The host's end: ours has a name of its own, another plugin's is named in the result.
fn host_end(
    socket: &mut Socket,
    conf: &BridgeConf,
    owner: &Owner,
    result: &CniResult,
) -> Result<Link, CniError> {
    let own = owner.host_link();
    let is = |interface: &&Interface| interface.sandbox.is_empty() && interface.name != conf.bridge;
    let named = result.interfaces.iter().find(is).map(|interface| interface.name.as_str());
    match link::get(socket, &own)? {
        Some(link) => Ok(link),
        None => find(socket, named.unwrap_or(&own)),
    }
}

fn check_pod(result: &CniResult, index: usize, attachment: &Attachment) -> Result<(), CniError> {
    let mut socket = Socket::route()?;
    let link = find(&mut socket, attachment.ifname.as_str())?;
    let expected = &result.interfaces[index];
    if link.kind != "veth" || !link.up {
        return Err(damaged(format!("{} is not a veth link that is up", link.name)));
    }
    if !expected.mac.is_empty() && !expected.mac.eq_ignore_ascii_case(&link.mac.to_string()) {
        return Err(damaged(format!("{} has MAC address {}, not {}", link.name, link.mac, expected.mac)));
    }
    if expected.mtu != 0 && expected.mtu != link.mtu {
        return Err(damaged(format!("{} has MTU {}, not {}", link.name, link.mtu, expected.mtu)));
    }
    check_addresses(&mut socket, &link, result, index)?;
    check_routes(&mut socket, &link, result)
}

fn check_addresses(
    socket: &mut Socket,
    link: &Link,
    result: &CniResult,
    index: usize,
) -> Result<(), CniError> {
    let found = addr::list(socket, link)?;
    let own = result.ips.iter().filter(|ip| ip.interface == Some(index));
    match own.map(|ip| ip.address).find(|address| !found.contains(address)) {
        Some(address) => Err(damaged(format!("{} lacks the address {address}", link.name))),
        None => Ok(()),
    }
}

fn check_routes(socket: &mut Socket, link: &Link, result: &CniResult) -> Result<(), CniError> {
    for expected in &result.routes {
        let wanted = (expected.dst.trunc(), next_hop(expected, result));
        if !route::list(socket, link, expected.dst.addr())?.contains(&wanted) {
            return Err(damaged(format!("{} lacks the route to {}", link.name, expected.dst)));
        }
    }
    Ok(())
}

fn find(socket: &mut Socket, name: &str) -> Result<Link, CniError> {
    let found: Result<Option<Link>, NetError> = link::get(socket, name);
    found?.ok_or_else(|| damaged(format!("link {name} is missing")))
}

//! The pod's end of a network, as every plugin that makes an interface sets it up and checks it.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use proto::cni::result::{Dns, Interface, Route};
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Request};

use super::damaged;
use crate::ipam;
use crate::net::link::{self, Link};
use crate::net::netns::NetNs;
use crate::net::socket::{Message, Socket};
use crate::net::{NetError, addr, route, sysctl};

/// What the IPAM plugin gives; `dns`, where anything is set there, goes before its own.
///
/// # Errors
/// The IPAM plugin's; [`ErrorCode::PLUGIN`] where it gives no address.
pub fn addresses(
    request: &Request,
    attachment: &Attachment,
    netns: &Path,
    dns: &Dns,
) -> Result<CniResult, CniError> {
    let mut result = ipam::add(request, attachment, netns)?;
    result.interfaces.clear();
    if result.ips.is_empty() {
        return Err(CniError::new(ErrorCode::PLUGIN, "the IPAM plugin returned no address"));
    }
    if !dns.is_empty() {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// The next hop of a route in the result: its own, or for a route of no link scope the subnet's gateway.
pub fn next_hop(route: &Route, result: &CniResult) -> Option<IpAddr> {
    match route.scope {
        None | Some(0) => route.gw.or_else(|| result.gateway_like(route.dst.addr())),
        Some(_) => route.gw,
    }
}

/// Settings that must be there before the link comes up: neighbours learn at once that its addresses have moved
/// here, and nothing on the wire changes its routes.
///
/// # Errors
/// [`NetError`].
pub fn prepare(ifname: &str) -> Result<(), NetError> {
    sysctl::set(&format!("ipv4/conf/{ifname}/arp_notify"), "1")?;
    sysctl::set_if_present(&format!("ipv6/conf/{ifname}/ndisc_notify"), "1")?;
    sysctl::set_if_present(&format!("ipv6/conf/{ifname}/accept_ra"), "0")?;
    sysctl::set_if_present(&format!("ipv6/conf/{ifname}/accept_dad"), "0")
}

/// Lets the interface have the result's IPv6 addresses, where the namespace has IPv6 turned off.
///
/// # Errors
/// Of entering the namespace, and of the setting.
pub fn allow_ipv6(netns: &NetNs, ifname: &str, result: &CniResult) -> Result<(), CniError> {
    if result.ips.iter().all(|ip| ip.address.addr().is_ipv4()) {
        return Ok(());
    }
    netns.run(|| sysctl::ensure(&format!("ipv6/conf/{ifname}/disable_ipv6"), "0"))??;
    Ok(())
}

/// Addresses, link up, routes: in one go.
pub fn changes(link: &Link, result: &CniResult) -> Vec<Message> {
    let mut changes: Vec<Message> = result.ips.iter().map(|ip| addr::add(link, ip.address)).collect();
    changes.push(link::set_up(link));
    changes.extend(routes(link, result));
    changes
}

/// The result's routes.
pub fn routes(link: &Link, result: &CniResult) -> Vec<Message> {
    let routes = result.routes.iter().map(|route| route::Route {
        gateway: next_hop(route, result),
        mtu: route.mtu,
        advmss: route.advmss,
        priority: route.priority,
        table: route.table,
        scope: route.scope,
        ..route::Route::to(route.dst.trunc())
    });
    // The first of several equal routes wins.
    routes.map(|route| route::add(link, &route).or_exists()).collect()
}

/// The link called `name`, which was just made.
///
/// # Errors
/// [`ErrorCode::PLUGIN`].
pub fn expect_link(socket: &mut Socket, name: &str) -> Result<Link, CniError> {
    link::get(socket, name)?.ok_or_else(|| CniError::new(ErrorCode::PLUGIN, format!("link {name} vanished")))
}

/// A link for the result.
pub fn describe(link: &Link, sandbox: &Path) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.to_string(),
        mtu: link.mtu,
        sandbox: sandbox.display().to_string(),
        ..Interface::default()
    }
}

/// `prevResult`, which CHECK needs.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] where it is missing.
pub fn previous(request: &Request) -> Result<CniResult, CniError> {
    let missing = || CniError::config("prevResult", "missing; CHECK needs it");
    request.conf.prev_result()?.ok_or_else(missing)
}

/// Index of the pod's interface in the result.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] where it is not there.
pub fn interface_index(result: &CniResult, attachment: &Attachment) -> Result<usize, CniError> {
    let is =
        |interface: &Interface| !interface.sandbox.is_empty() && interface.name == attachment.ifname.as_str();
    result.interfaces.iter().position(is).ok_or_else(|| {
        CniError::config("prevResult.interfaces", format!("no container interface {}", attachment.ifname))
    })
}

/// Addresses that the result gives to the interface `index`.
pub fn addresses_of(result: &CniResult, index: usize) -> Vec<IpNet> {
    result.ips.iter().filter(|ip| ip.interface == Some(index)).map(|ip| ip.address).collect()
}

/// Verifies, inside the pod's namespace, the hardware address and MTU that the result names, addresses and routes.
///
/// Plugins further down the chain may change hardware address and MTU, and say so in the result.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] with the first damage.
pub fn check(socket: &mut Socket, link: &Link, result: &CniResult, index: usize) -> Result<(), CniError> {
    let expected = &result.interfaces[index];
    if !expected.mac.is_empty() && !expected.mac.eq_ignore_ascii_case(&link.mac.to_string()) {
        return Err(damaged(format!("{} has MAC address {}, not {}", link.name, link.mac, expected.mac)));
    }
    if expected.mtu != 0 && expected.mtu != link.mtu {
        return Err(damaged(format!("{} has MTU {}, not {}", link.name, link.mtu, expected.mtu)));
    }
    let found = addr::list(socket, link)?;
    if let Some(lost) = addresses_of(result, index).iter().find(|address| !found.contains(address)) {
        return Err(damaged(format!("{} lacks the address {lost}", link.name)));
    }
    for expected in &result.routes {
        let wanted = (expected.dst.trunc(), next_hop(expected, result));
        if !route::list(socket, link, expected.dst.addr())?.contains(&wanted) {
            return Err(damaged(format!("{} lacks the route to {}", link.name, expected.dst)));
        }
    }
    Ok(())
}

/// The link called `name`.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] where it is missing.
pub fn find(socket: &mut Socket, name: &str) -> Result<Link, CniError> {
    let found: Result<Option<Link>, NetError> = link::get(socket, name);
    found?.ok_or_else(|| damaged(format!("link {name} is missing")))
}

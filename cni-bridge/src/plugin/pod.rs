//! The pod's end of a network, as every plugin that makes an interface sets it up and checks it.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proto::cni::result::{Dns, Interface, Route};
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Request, SpecVersion};

use super::damaged;
use crate::ipam::{self, Given};
use crate::net::addr::Search;
use crate::net::link::{self, Link};
use crate::net::netns::{NetNs, NetNsError};
use crate::net::socket::{Message, Socket};
use crate::net::{NetError, addr, parameters, route, sysctl};

/// How long the kernel may look for other holders of an address.
const SEARCH_DEADLINE: Duration = Duration::from_secs(10);

/// Who routes for the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    /// This host: nothing that others announce concerns the pod.
    Host,
    /// Whoever is on the wire and says so.
    OnTheWire,
}

/// Whether somebody else may have the pod's IPv6 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplicates {
    /// The kernel looks for them, and ADD waits for that.
    LookedFor,
    /// The addresses are unique, and usable at once.
    Impossible,
}

/// What the IPAM plugin gives; `dns`, where anything is set there, goes before its own.
///
/// # Errors
/// The IPAM plugin's; [`ErrorCode::PLUGIN`] where it gives no address.
pub fn addresses(
    request: &Request,
    attachment: &Attachment,
    netns: &Path,
    dns: &Dns,
) -> Result<Given, CniError> {
    let mut given = ipam::add(request, attachment, netns)?;
    let result = &mut given.result;
    result.interfaces.clear();
    if result.ips.is_empty() {
        return Err(CniError::new(ErrorCode::PLUGIN, "the IPAM plugin returned no address"));
    }
    if !dns.is_empty() {
        result.dns = dns.clone();
    }
    Ok(given)
}

/// The next hop of a route in the result: its own, or for a route of no link scope the subnet's gateway.
pub fn next_hop(route: &Route, result: &CniResult) -> Option<IpAddr> {
    match route.scope {
        None | Some(0) => route.gw.or_else(|| result.gateway_like(route.dst.addr())),
        Some(_) => route.gw,
    }
}

/// IPv6 settings that must be there before the link comes up: neighbours learn at once that its addresses have moved
/// here (for IPv4, [`parameters::announce`]); what is on the wire changes the pod's routes only where it is the router.
/// All of it is best effort: it works without, where `/proc/sys` cannot be written.
pub fn prepare(ifname: &str, router: Router, duplicates: Duplicates) {
    let _ = sysctl::set(&format!("ipv6/conf/{ifname}/ndisc_notify"), "1");
    if router == Router::Host {
        ignore_announcements(ifname);
    }
    if duplicates == Duplicates::Impossible {
        let _ = sysctl::set(&format!("ipv6/conf/{ifname}/accept_dad"), "0");
    }
}

/// What others announce on the wire does not concern the pod. Best effort, as [`prepare`].
pub fn ignore_announcements(ifname: &str) {
    let _ = sysctl::set(&format!("ipv6/conf/{ifname}/accept_ra"), "0");
}

/// Lets the interface have the result's IPv6 addresses, where the namespace has IPv6 turned off, and keep them while
/// it is down.
///
/// # Errors
/// Of entering the namespace, and of the setting.
pub fn allow_ipv6(netns: &NetNs, ifname: &str, result: &CniResult) -> Result<(), CniError> {
    if result.ips.iter().all(|ip| ip.address.addr().is_ipv4()) {
        return Ok(());
    }
    netns.run(|| {
        for name in ["lo", ifname] {
            sysctl::ensure(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        }
        let _ = sysctl::ensure(&format!("ipv6/conf/{ifname}/keep_addr_on_down"), "1");
        Ok::<(), NetError>(())
    })??;
    Ok(())
}

/// Addresses, link up, routes: in one go.
pub fn changes(link: &Link, result: &CniResult, duplicates: Duplicates) -> Vec<Message> {
    let add = match duplicates {
        Duplicates::LookedFor => addr::add_checked,
        Duplicates::Impossible => addr::add,
    };
    let mut changes = vec![parameters::announce(link)];
    changes.extend(result.ips.iter().map(|ip| add(link, ip.address)));
    changes.push(link::set_up(link));
    changes.extend(routes(link, result));
    changes
}

/// Waits until the kernel knows that nobody else has the link's IPv6 addresses.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] naming an address that somebody else has, or where the search does not end.
pub fn await_search(inside: &mut Socket, link: &Link) -> Result<(), CniError> {
    let deadline = Instant::now() + SEARCH_DEADLINE;
    loop {
        match addr::search(inside, link)? {
            Search::Done => return Ok(()),
            Search::Taken(address) => {
                let msg = format!("another host has the address {address}");
                return Err(CniError::new(ErrorCode::PLUGIN, msg));
            }
            Search::Running if Instant::now() >= deadline => {
                let msg = format!("the search for others with the addresses of {} does not end", link.name);
                return Err(CniError::new(ErrorCode::PLUGIN, msg));
            }
            Search::Running => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The result's routes.
pub fn routes(link: &Link, result: &CniResult) -> Vec<Message> {
    let routes = result.routes.iter().map(|route| wanted(route, result));
    // The first of several equal routes wins.
    routes.map(|route| route::add(link, &route).or_exists()).collect()
}

fn wanted(route: &Route, result: &CniResult) -> route::Route {
    route::Route {
        gateway: next_hop(route, result),
        mtu: route.mtu,
        advmss: route.advmss,
        priority: route.priority,
        table: route.table,
        scope: route.scope,
        ..route::Route::to(route.dst.trunc())
    }
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

/// Verifies that the result's interface `index` is in the namespace that CHECK is asked about.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] where it is in another.
pub fn expect_sandbox(result: &CniResult, index: usize, netns: &NetNs) -> Result<(), CniError> {
    let told = Path::new(&result.interfaces[index].sandbox);
    // Another path may lead to the same.
    let same = || Ok::<_, NetNsError>(NetNs::open(told)?.identity()? == netns.identity()?);
    if told == netns.path() || same().unwrap_or(false) {
        return Ok(());
    }
    let (told, asked) = (told.display(), netns.path().display());
    Err(damaged(format!("prevResult.interfaces[{index}] is in {told}, not in {asked}")))
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
pub fn check(
    socket: &mut Socket,
    request: &Request,
    link: &Link,
    (result, index): (&CniResult, usize),
) -> Result<(), CniError> {
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
        let wanted = wanted(expected, result);
        // Before 1.1.0 a result does not tell the scope, which may have kept the route on the link.
        let on_link = route::Route { gateway: expected.gw, ..wanted.clone() };
        let untold = request.conf.version < SpecVersion::V1_1_0;
        let there =
            route::is_there(socket, link, &wanted)? || (untold && route::is_there(socket, link, &on_link)?);
        if !there {
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

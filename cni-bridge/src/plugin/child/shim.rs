//! The host's own link in a macvlan network: a parent and what is on top of it never exchange frames, so that without
//! one the host and its pods cannot talk.
//!
//! The host has its addresses there without a subnet, and a route to each pod.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::link::MacVlanMode;
use proto::cni::{CniError, NetworkName};

use super::parent::{self, mark_of_made};
use crate::ledger::Ledger;
use crate::net::link::{self, Link};
use crate::net::route::{self, Route};
use crate::net::socket::Socket;
use crate::net::sublink::{self, Kind, SubLink};
use crate::net::{NetError, addr, sysctl};
use crate::owner::hashed_name;
use crate::plugin::damaged;

/// The name of a network's shim on a parent.
pub fn name(network: &NetworkName, parent: &str) -> String {
    hashed_name("shim", &format!("{network}/{parent}"))
}

/// Makes the shim and its routes to `pods`. The caller has written in the ledger that it uses both.
///
/// # Errors
/// [`proto::cni::ErrorCode::PLUGIN`].
pub fn ensure(
    host: &mut Socket,
    ledger: &Ledger,
    parent: &Link,
    shim: (&str, &[IpAddr]),
    pods: &[IpAddr],
) -> Result<(), CniError> {
    let (name, own) = shim;
    if link::get(host, name)?.is_none() {
        ledger.mark(&mark_of_made(name))?;
        let kind = Kind::MacVlan { mode: MacVlanMode::Bridge, queue: None };
        let wanted = SubLink { name, lower: parent.index, netns: None, mtu: None, mac: None, kind };
        sublink::create_shared(host, &wanted)?;
    }
    let shim = crate::plugin::pod::expect_link(host, name)?;
    sysctl::own_routes(name)?;
    let mut changes = vec![link::set_up(&shim)];
    changes.extend(own.iter().map(|address| addr::add_unrouted(&shim, IpNet::from(*address)).or_exists()));
    changes.extend(
        pods.iter().filter_map(|pod| route_to(*pod, own)).map(|to| route::add(&shim, &to).or_exists()),
    );
    Ok(host.apply(&changes)?)
}

/// Forgets the routes to `pods`; the shim may be gone.
///
/// # Errors
/// [`NetError`].
pub fn forget(host: &mut Socket, name: &str, pods: &[IpAddr]) -> Result<(), NetError> {
    let Some(shim) = link::get(host, name)?.filter(parent::is_own) else { return Ok(()) };
    for pod in pods {
        match host.apply(&[route::remove(&shim, &Route::to(IpNet::from(*pod)))]) {
            Err(error) if !error.is_missing() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Verifies the shim, its addresses and its routes to `pods`.
///
/// # Errors
/// [`proto::cni::ErrorCode::PLUGIN`] with the first damage.
pub fn check(host: &mut Socket, name: &str, own: &[IpAddr], pods: &[IpAddr]) -> Result<(), CniError> {
    let shim = crate::plugin::pod::find(host, name)?;
    if !shim.up {
        return Err(damaged(format!("the host's link {name} is down")));
    }
    let found = addr::list(host, &shim)?;
    if let Some(lost) = own.iter().find(|address| !found.contains(&IpNet::from(**address))) {
        return Err(damaged(format!("the host's link {name} lacks the address {lost}")));
    }
    for to in pods.iter().filter_map(|pod| route_to(*pod, own)) {
        if !route::is_there(host, &shim, &to)? {
            return Err(damaged(format!("the host's link {name} lacks the route to {}", to.dst)));
        }
    }
    Ok(())
}

/// The route to a pod from the host's address of its family; none without such.
fn route_to(pod: IpAddr, own: &[IpAddr]) -> Option<Route> {
    let source = own.iter().find(|address| address.is_ipv4() == pod.is_ipv4())?;
    Some(Route { source: Some(*source), ..Route::to(IpNet::from(pod)) })
}

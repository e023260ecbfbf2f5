//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};

use super::addr::family;
use super::error::NetError;
use super::link::Link;
use super::socket::{Message, Socket, decode};

/// A unicast route through a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; on-link where absent.
    pub gateway: Option<IpAddr>,
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Largest TCP segment to advertise, in bytes.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Table; main where absent.
    pub table: Option<u32>,
    /// Scope; link or universe, as the next hop suggests, where absent.
    pub scope: Option<u8>,
    /// Source address of what this host sends; the kernel's choice where absent.
    pub source: Option<IpAddr>,
}

impl Route {
    /// An on-link route in the main table.
    pub fn to(dst: IpNet) -> Self {
        Self {
            dst,
            gateway: None,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
            source: None,
        }
    }
}

/// The change that adds `route` through `link`, behind those to the same destination through other next hops. The same
/// once more is refused.
pub fn add(link: &Link, route: &Route) -> Message {
    let what = format!("adding a route to {} through link {}", route.dst, link.name);
    Message::route(what, NLM_F_CREATE | NLM_F_APPEND, &RouteNetlinkMessage::NewRoute(message(link, route)))
}

/// The change that removes `route` through `link`.
pub fn remove(link: &Link, route: &Route) -> Message {
    let what = format!("removing the route to {} through link {}", route.dst, link.name);
    Message::route(what, 0, &RouteNetlinkMessage::DelRoute(message(link, route)))
}

fn message(link: &Link, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(route.dst.addr()),
        destination_prefix_length: route.dst.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        kind: RouteType::Unicast,
        scope: route.scope.map(RouteScope::from).unwrap_or(match route.gateway {
            Some(_) => RouteScope::Universe,
            None => RouteScope::Link,
        }),
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if route.dst.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.dst.network())));
    }
    attributes.push(RouteAttribute::Oif(link.index));
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    attributes.extend(route.table.map(RouteAttribute::Table));
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
    let metrics: Vec<RouteMetric> = [route.mtu.map(RouteMetric::Mtu), route.advmss.map(RouteMetric::Advmss)]
        .into_iter()
        .flatten()
        .collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// Whether `wanted` leads through `link` as it says: what it leaves open may be as it likes.
///
/// # Errors
/// [`NetError`].
pub fn is_there(socket: &mut Socket, link: &Link, wanted: &Route) -> Result<bool, NetError> {
    let mut query = RouteMessage::default();
    query.header.address_family = family(wanted.dst.addr());
    query.attributes.push(RouteAttribute::Oif(link.index));
    let what = format!("listing the routes through link {}", link.name);
    let question = Message::route(what, NLM_F_DUMP, &RouteNetlinkMessage::GetRoute(query));
    for answer in socket.ask(&question)? {
        let message: RouteMessage = decode(&answer, &question.what)?;
        if message.header.kind == RouteType::Unicast
            && next_hops(&message).contains(&(link.index, wanted.gateway))
            && matches(&message, wanted)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether all but the next hop is as wanted. Without a table, main is meant; the kernel gives IPv6 routes no scope.
fn matches(found: &RouteMessage, wanted: &Route) -> bool {
    let like = wanted.dst.addr();
    let number = |pick: fn(&RouteAttribute) -> Option<u32>| found.attributes.iter().find_map(pick);
    let metric = |pick: fn(&RouteMetric) -> Option<u32>| {
        let metrics = found.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => Some(metrics),
            _ => None,
        });
        metrics.and_then(|metrics| metrics.iter().find_map(pick))
    };
    let table = number(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let mtu = metric(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let advmss = metric(|metric| match metric {
        RouteMetric::Advmss(advmss) => Some(*advmss),
        _ => None,
    });
    // What the kernel makes of no metric at all.
    let unranked = if like.is_ipv4() { 0 } else { 1024 };
    let rank = wanted.priority.filter(|priority| *priority != 0).unwrap_or(unranked);
    destination(found, like) == wanted.dst
        && table.unwrap_or(found.header.table.into())
            == wanted.table.filter(|table| *table != 0).unwrap_or(RouteHeader::RT_TABLE_MAIN.into())
        && (wanted.priority.is_none() || priority(found) == rank)
        && (wanted.mtu.is_none() || mtu == wanted.mtu)
        && (wanted.advmss.is_none() || advmss == wanted.advmss)
        && (like.is_ipv6() || wanted.scope.is_none_or(|scope| u8::from(found.header.scope) == scope))
}

/// Links and gateways that a route leads through.
fn next_hops(message: &RouteMessage) -> Vec<(u32, Option<IpAddr>)> {
    let many = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    match many {
        Some(hops) => hops.iter().map(|hop| (hop.interface_index, gateway(&hop.attributes))).collect(),
        None => {
            attribute_oif(message).map(|index| (index, gateway(&message.attributes))).into_iter().collect()
        }
    }
}

/// Index of the link of the default route that wins, IPv4's before IPv6's.
///
/// # Errors
/// [`NetError`].
pub fn default_link(socket: &mut Socket) -> Result<Option<u32>, NetError> {
    for like in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
        let routes = all(socket, like)?;
        let of_main = routes.iter().filter(|route| {
            route.header.destination_prefix_length == 0 && route.header.table == RouteHeader::RT_TABLE_MAIN
        });
        let found = of_main.filter_map(|route| Some((priority(route), attribute_oif(route)?))).min();
        if let Some((_, index)) = found {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// Destinations of all unicast routes of a family, in every table.
///
/// # Errors
/// [`NetError`].
pub fn destinations(socket: &mut Socket, like: IpAddr) -> Result<Vec<Destination>, NetError> {
    let routes = all(socket, like)?;
    let describe =
        |route: &RouteMessage| Destination { subnet: destination(route, like), on_link: !has_router(route) };
    Ok(routes.iter().map(describe).collect())
}

/// Where a route of the host leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// The subnet.
    pub subnet: IpNet,
    /// Reached without another hop.
    pub on_link: bool,
}

fn all(socket: &mut Socket, like: IpAddr) -> Result<Vec<RouteMessage>, NetError> {
    let mut query = RouteMessage::default();
    query.header.address_family = family(like);
    let question = Message::route("listing routes", NLM_F_DUMP, &RouteNetlinkMessage::GetRoute(query));
    let mut found = Vec::new();
    for answer in socket.ask(&question)? {
        let message: RouteMessage = decode(&answer, &question.what)?;
        if message.header.kind == RouteType::Unicast {
            found.push(message);
        }
    }
    Ok(found)
}

/// Whether a router comes next: one of the same family or another, one of several, or one that is noted elsewhere.
fn has_router(message: &RouteMessage) -> bool {
    const RTA_NH_ID: u16 = 30;
    message.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => true,
        RouteAttribute::Other(other) => other.kind() == RTA_NH_ID,
        _ => false,
    })
}

fn priority(message: &RouteMessage) -> u32 {
    let found = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    found.unwrap_or(0)
}

/// Index of the link through which packets to `address` leave.
///
/// # Errors
/// [`NetError`].
pub fn link_to(socket: &mut Socket, address: IpAddr) -> Result<Option<u32>, NetError> {
    let mut query = RouteMessage::default();
    query.header.address_family = family(address);
    query.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    query.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
    let what = format!("looking up the route to {address}");
    let question = Message::route(what, 0, &RouteNetlinkMessage::GetRoute(query));
    let answers = socket.ask(&question)?;
    let Some(answer) = answers.first() else { return Ok(None) };
    Ok(attribute_oif(&decode(answer, &question.what)?))
}

fn attribute_oif(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn destination(message: &RouteMessage, like: IpAddr) -> IpNet {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    let zero = if like.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    IpNet::new(address.unwrap_or(zero), message.header.destination_prefix_length).unwrap_or(IpNet::from(zero))
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    })
}

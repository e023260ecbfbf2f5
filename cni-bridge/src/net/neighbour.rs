//! What the host knows of the neighbours on a link (ARP, RFC 826, and IPv6's neighbour discovery, RFC 4861).

use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::link::Link;
use super::socket::Message;

/// The change that makes the host ask anew who has an address, where it knows somebody. It would else send to who had
/// the address before, until that has failed to answer for some seconds.
pub fn forget(link: &Link, address: IpAddr) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link.index;
    let (family, destination) = match address {
        IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    let what = format!("forgetting who had {address} on link {}", link.name);
    let unknown = Some(Errno::NOENT);
    Message { tolerated: unknown, ..Message::route(what, 0, &RouteNetlinkMessage::DelNeighbour(message)) }
}

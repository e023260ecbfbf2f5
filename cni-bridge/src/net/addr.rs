//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::NetError;
use super::link::Link;
use super::socket::{Message, Socket, decode};

/// The change that adds an address. An IPv6 address is usable at once: whoever hands addresses out here knows that
/// they are unique, and detection of duplicates would hold traffic for a second.
pub fn add(link: &Link, address: IpNet) -> Message {
    let mut message = message(link.index, address);
    match address {
        IpNet::V4(v4) if v4.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    let what = format!("adding address {address} to link {}", link.name);
    Message::route(what, NLM_F_CREATE | NLM_F_EXCL, &RouteNetlinkMessage::NewAddress(message))
}

/// As [`add`], but an IPv6 address is used only when nobody else on the wire turns out to have it.
pub fn add_checked(link: &Link, address: IpNet) -> Message {
    match address {
        IpNet::V4(_) => add(link, address),
        IpNet::V6(_) => add_with(link, address, AddressFlags::empty()),
    }
}

/// As [`add`], but without the route to the address's subnet that comes with it.
pub fn add_unrouted(link: &Link, address: IpNet) -> Message {
    add_with(link, address, AddressFlags::Noprefixroute | AddressFlags::Nodad)
}

fn add_with(link: &Link, address: IpNet, flags: AddressFlags) -> Message {
    let mut message = message(link.index, address);
    message.attributes.push(AddressAttribute::Flags(flags));
    let what = format!("adding address {address} to link {}", link.name);
    Message::route(what, NLM_F_CREATE | NLM_F_EXCL, &RouteNetlinkMessage::NewAddress(message))
}

/// Where the search for other holders of a link's IPv6 addresses stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// Goes on.
    Running,
    /// Nobody else has them.
    Done,
    /// This one belongs to somebody else.
    Taken(IpAddr),
}

/// Where the search for other holders of the link's addresses stands.
///
/// # Errors
/// [`NetError`].
pub fn search(socket: &mut Socket, link: &Link) -> Result<Search, NetError> {
    let mut outcome = Search::Done;
    for message in dump(socket, link)? {
        let flags = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        let flags = flags.unwrap_or(AddressFlags::empty());
        if let (true, Some(found)) = (flags.contains(AddressFlags::Dadfailed), address(&message)) {
            return Ok(Search::Taken(found.addr()));
        }
        if flags.contains(AddressFlags::Tentative) {
            outcome = Search::Running;
        }
    }
    Ok(outcome)
}

/// The change that removes an address.
pub fn remove(link: &Link, address: IpNet) -> Message {
    let what = format!("removing address {address} from link {}", link.name);
    Message::route(what, 0, &RouteNetlinkMessage::DelAddress(message(link.index, address)))
}

/// The addresses of a link, without link-local ones of IPv6.
///
/// # Errors
/// [`NetError`].
pub fn list(socket: &mut Socket, link: &Link) -> Result<Vec<IpNet>, NetError> {
    let found = dump(socket, link)?;
    Ok(found
        .iter()
        .filter(|message| message.header.scope != AddressScope::Link)
        .filter_map(address)
        .collect())
}

/// Every address of the calling thread's namespace.
///
/// # Errors
/// [`NetError`].
pub fn all(socket: &mut Socket) -> Result<Vec<IpNet>, NetError> {
    let question = Message::route(
        "listing addresses",
        NLM_F_DUMP,
        &RouteNetlinkMessage::GetAddress(AddressMessage::default()),
    );
    let answers = socket.ask(&question)?;
    answers
        .iter()
        .filter_map(|answer| decode(answer, &question.what).map(|found| address(&found)).transpose())
        .collect()
}

fn dump(socket: &mut Socket, link: &Link) -> Result<Vec<AddressMessage>, NetError> {
    let mut query = AddressMessage::default();
    query.header.index = link.index;
    let what = format!("listing the addresses of link {}", link.name);
    let question = Message::route(what, NLM_F_DUMP, &RouteNetlinkMessage::GetAddress(query));
    let mut found = Vec::new();
    for answer in socket.ask(&question)? {
        let message: AddressMessage = decode(&answer, &question.what)?;
        if message.header.index == link.index {
            found.push(message);
        }
    }
    Ok(found)
}

/// IFA_LOCAL is the address where the link has a peer address too; IPv6 has only IFA_ADDRESS.
fn address(message: &AddressMessage) -> Option<IpNet> {
    let pick = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    IpNet::new(pick(true).or_else(|| pick(false))?, message.header.prefix_len).ok()
}

fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.header.family = family(address.addr());
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}

/// The address family of `address`.
pub fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

//! Connection tracking: forgetting flows whose translation is out of date.
//!
//! A UDP flow that began before its port was published, or while another pod had it, goes on as it began for as long
//! as packets come.

use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;

use super::error::NetError;
use super::nft::wire::{Attributes, attribute};
use super::socket::{Message, Socket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const GET_STATISTICS: u16 = 5;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// CTA_FILTER_F_CTA_PROTO_NUM.
const OF_PROTOCOL: u32 = 1 << 3;

/// One tracked flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Port that the sender aimed at.
    pub port: u16,
    /// Who answers.
    pub answers: IpAddr,
}

/// What some flows have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Like {
    /// The port that the sender aimed at, and its address where only one counts; an IPv6 one is not looked at.
    AimedAt(u16, Option<IpAddr>),
    /// Who answers.
    AnsweredBy(IpAddr),
}

/// Forgets the flows of a transport protocol that are alike, of one address family. The kernel picks them itself: that
/// passes over the empty places of its table without a look, a listing locks each.
///
/// # Errors
/// [`NetError`].
pub fn forget_alike(socket: &mut Socket, key: (u8, IpAddr), like: Like) -> Result<(), NetError> {
    let (protocol, address) = key;
    // The kernel's comparison of IPv6 addresses is the wrong way round (as of 6.18).
    let like = match like {
        Like::AnsweredBy(IpAddr::V6(_)) => return forget(socket, key, &|flow| like.fits(flow)),
        Like::AimedAt(port, Some(IpAddr::V6(_))) => Like::AimedAt(port, None),
        other => other,
    };
    let mut query = Attributes::default();
    let (tuple, flags) = like.tuple(protocol);
    query.nest(if like.is_of_reply() { TUPLE_REPLY } else { TUPLE_ORIGINAL }, |inner| inner.append(&tuple));
    query.nest(FILTER, |filter| {
        filter.bytes(if like.is_of_reply() { 2 } else { 1 }, &flags.to_ne_bytes());
    });
    // Kernels that cannot take it for the name of a single flow, and refuse it as incomplete.
    match socket.apply(&[message("forgetting tracked flows", (DELETE, 0), family(address), query)]) {
        Err(NetError::Refused { .. }) => forget(socket, key, &|flow| like.fits(flow)),
        other => other,
    }
}

impl Like {
    fn is_of_reply(self) -> bool {
        matches!(self, Self::AnsweredBy(_))
    }

    /// Attributes of a tuple, and CTA_FILTER_F_ flags that say what of it counts.
    fn tuple(self, protocol: u8) -> (Vec<u8>, u32) {
        const SOURCE: u32 = 1 << 0;
        const DESTINATION: u32 = 1 << 1;
        const DESTINATION_PORT: u32 = 1 << 5;
        let (port, address, of_address) = match self {
            Self::AimedAt(port, address) => (Some(port), address, DESTINATION),
            Self::AnsweredBy(address) => (None, Some(address), SOURCE),
        };
        let (mut tuple, mut flags) = (Attributes::default(), OF_PROTOCOL);
        if let Some(address) = address {
            flags |= of_address;
            // Source and destination of IPv4 are 1 and 2, of IPv6 3 and 4.
            tuple.nest(1, |ip| {
                match address {
                    IpAddr::V4(v4) => ip.bytes(of_address as u16, &v4.octets()),
                    IpAddr::V6(v6) => ip.bytes(of_address as u16 + 2, &v6.octets()),
                };
            });
        }
        tuple.nest(2, |proto| {
            proto.bytes(1, &[protocol]);
            if let Some(port) = port {
                flags |= DESTINATION_PORT;
                proto.bytes(3, &port.to_be_bytes());
            }
        });
        (tuple.into_bytes(), flags)
    }

    fn fits(self, flow: &Flow) -> bool {
        match self {
            Self::AimedAt(port, _) => flow.port == port,
            Self::AnsweredBy(address) => flow.answers == address,
        }
    }
}

/// Forgets the flows of a transport protocol that `stale` picks out of a listing, of one address family.
///
/// # Errors
/// [`NetError`].
pub fn forget(socket: &mut Socket, key: (u8, IpAddr), stale: &dyn Fn(&Flow) -> bool) -> Result<(), NetError> {
    if is_empty(socket)? {
        return Ok(());
    }
    let (protocol, address) = key;
    let family = family(address);
    // Kernels that do not filter list everything; what is not of the protocol is then passed over below.
    let mut query = Attributes::default();
    query.nest(TUPLE_ORIGINAL, |tuple| {
        tuple.nest(2, |proto| {
            proto.bytes(1, &[protocol]);
        });
    });
    query.nest(FILTER, |filter| {
        filter.bytes(1, &OF_PROTOCOL.to_ne_bytes());
    });
    let question = message("listing tracked flows", (GET, NLM_F_DUMP), family, query);
    for answer in socket.ask(&question)? {
        let Some(body) = answer.body.get(4..) else { continue };
        let Some(original) = attribute(body, TUPLE_ORIGINAL) else { continue };
        let flow = read_flow(original, body, protocol);
        if !flow.is_some_and(|flow| stale(&flow)) {
            continue;
        }
        let mut target = Attributes::default();
        target.nest(TUPLE_ORIGINAL, |tuple| tuple.append(original));
        if let Some(zone) = attribute(body, ZONE) {
            target.bytes(ZONE, zone);
        }
        match socket.apply(&[message("forgetting a tracked flow", (DELETE, 0), family, target)]) {
            Err(error) if !error.is_missing() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether nothing is tracked in this network namespace. A listing walks all of the table that the whole machine
/// shares, 20 ms where there is much memory, however few flows are its own.
fn is_empty(socket: &mut Socket) -> Result<bool, NetError> {
    const ENTRIES: u16 = 1;
    let question = message("counting tracked flows", (GET_STATISTICS, 0), 0, Attributes::default());
    let answers = socket.ask(&question)?;
    let count = answers.first().and_then(|answer| attribute(answer.body.get(4..)?, ENTRIES));
    Ok(count == Some(&[0; 4]))
}

fn family(like: IpAddr) -> u8 {
    (if like.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn message(what: &str, (kind, flags): (u16, u16), family: u8, attributes: Attributes) -> Message {
    let mut body = vec![family, 0, 0, 0];
    body.extend(attributes.into_bytes());
    Message { what: what.to_owned(), kind: SUBSYSTEM << 8 | kind, flags, body, tolerated: None }
}

fn read_flow(original: &[u8], body: &[u8], protocol: u8) -> Option<Flow> {
    let proto = attribute(original, 2)?;
    if attribute(proto, 1)? != [protocol] {
        return None;
    }
    let port = u16::from_be_bytes(attribute(proto, 3)?.try_into().ok()?);
    let source = attribute(attribute(body, TUPLE_REPLY)?, 1)?;
    let four = attribute(source, 1).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
    let six = attribute(source, 3).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from);
    Some(Flow { port, answers: four.or(six)? })
}

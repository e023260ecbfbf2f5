//! Kernel parameters by netlink. Where many pods are, that is a thousand times faster than below `/proc/sys/net`: see
//! [`super::sysctl`].

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, LinkAttribute,
};
use rustix::io::Errno;

use super::error::NetError;
use super::link::{self, Link};
use super::socket::{Message, Socket};

/// The kernel's `RTM_GETNETCONF`.
const GET_NETCONF: u16 = 82;
/// The attribute `NETCONFA_IFINDEX`, and its value for what holds for all links.
const IFINDEX: u16 = 1;
const ALL_LINKS: i32 = -1;
/// The attribute `NETCONFA_FORWARDING`.
const FORWARDING: u16 = 2;
/// Length of the kernel's `struct netconfmsg`, padded.
const NETCONF_HEADER: usize = 4;

/// Parameters of a link; unset where the kernel does not tell them (it lacks the family, or has it turned off).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parameters {
    /// Router advertisements and their prefixes change nothing.
    pub own_routes: bool,
    /// Addresses of 127.0.0.0/8 may be on the wire.
    pub routes_localnet: bool,
}

impl Parameters {
    /// Reads what a description of a link has.
    pub fn read(families: &[AfSpecUnspec]) -> Self {
        let mut parameters = Self::default();
        for family in families {
            match family {
                AfSpecUnspec::Inet(settings) => {
                    parameters.routes_localnet = settings
                        .iter()
                        .any(|set| matches!(set, AfSpecInet::DevConf(conf) if conf.route_localnet == 1));
                }
                AfSpecUnspec::Inet6(settings) => {
                    let closed = |set: &AfSpecInet6| match set {
                        AfSpecInet6::DevConf(conf) => conf.accept_ra == 0 && conf.autoconf == 0,
                        _ => false,
                    };
                    parameters.own_routes = settings.iter().any(closed);
                }
                _ => {}
            }
        }
        parameters
    }
}

/// Whether the host forwards packets of the address's family.
///
/// # Errors
/// [`NetError`]; also where the kernel lacks the family or the question.
pub fn forwards(socket: &mut Socket, address: IpAddr) -> Result<bool, NetError> {
    let (family, name) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, "IPv4"),
        IpAddr::V6(_) => (AddressFamily::Inet6, "IPv6"),
    };
    let all = DefaultNla::new(IFINDEX, ALL_LINKS.to_ne_bytes().to_vec());
    let mut body = vec![0; NETCONF_HEADER + all.buffer_len()];
    body[0] = u8::from(family);
    all.emit(&mut body[NETCONF_HEADER..]);
    let what = format!("asking whether the host forwards {name}");
    let question = Message { what, kind: GET_NETCONF, flags: 0, body, tolerated: None };
    let answers = socket.ask(&question)?;
    let attributes = answers.first().and_then(|answer| answer.body.get(NETCONF_HEADER..)).unwrap_or_default();
    let found = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == FORWARDING);
    Ok(found.is_some_and(|attribute| attribute.value() == 1i32.to_ne_bytes()))
}

/// The change after which neighbours learn at once, when the link comes up, that its IPv4 addresses have moved here.
pub fn announce(link: &Link) -> Message {
    let mut announcing = InetDevConf::default();
    announcing.arp_notify = 1;
    let family = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(announcing)]);
    change(format!("making link {} announce its addresses", link.name), link, family)
}

/// The change after which a link that comes up makes itself no IPv6 address, and no routes to it: every change of any
/// link goes through all of the host's IPv6 routes.
pub fn stay_without_addresses(link: &Link) -> Message {
    let family = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    change(format!("keeping link {} from making itself addresses", link.name), link, family)
}

/// A link that has not the family has not what is to be changed either.
fn change(what: String, link: &Link, family: AfSpecUnspec) -> Message {
    let mut message = link::change(link);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![family]));
    Message { tolerated: Some(Errno::AFNOSUPPORT), ..link::set(what, message) }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::Inet6DevConf;

    use super::*;

    #[test]
    fn parameters_are_read_by_family() {
        let v4 = |route_localnet| {
            let mut conf = InetDevConf::default();
            conf.route_localnet = route_localnet;
            AfSpecUnspec::Inet(vec![AfSpecInet::DevConf(conf)])
        };
        let v6 = |accept_ra, autoconf| {
            let mut conf = Inet6DevConf::default();
            (conf.accept_ra, conf.autoconf) = (accept_ra, autoconf);
            AfSpecUnspec::Inet6(vec![AfSpecInet6::DevConf(conf)])
        };
        let check = |families: &[AfSpecUnspec], own_routes: bool, routes_localnet: bool| {
            let expect = Parameters { own_routes, routes_localnet };
            assert_eq!(Parameters::read(families), expect, "{families:?}");
        };
        check(&[v4(1), v6(0, 0)], true, true);
        check(&[v4(0), v6(1, 0)], false, false);
        check(&[v6(0, 1)], false, false);
        check(&[v4(1)], false, true);
        check(&[], false, false);
    }
}

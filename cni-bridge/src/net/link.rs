//! Links: bridges, veth pairs, their properties.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
};

use rustix::io::Errno;
use rustix::net::netdevice;

use super::error::NetError;
use super::parameters::Parameters;
use super::socket::{Answer, Message, Socket, decode};
use super::sublink::Detail;

/// The group of links that are Berth's own and shared by several attachments; given with the link's creation, so that
/// no such link is ever without it.
pub const OWN_GROUP: u32 = 0x6265_7274;

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `bridge`, `veth`, …; empty for hardware and `lo`.
    pub kind: String,
    /// Hardware address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Index of the bridge it is a port of.
    pub controller: Option<u32>,
    /// Free text; Berth's owner tag.
    pub alias: String,
    /// Administratively up.
    pub up: bool,
    /// Up and able to carry frames.
    pub running: bool,
    /// Receives every frame.
    pub promiscuous: bool,
    /// As a bridge port: sends frames back where they came from.
    pub hairpin: bool,
    /// As a bridge port: exchanges frames only with ports that are not isolated.
    pub isolated: bool,
    /// As a bridge port: takes frames only from addresses that the bridge was told to be behind it.
    pub locked: bool,
    /// Index of the link that it is on top of, or of the other end of a veth; perhaps in another namespace.
    pub lower: Option<u32>,
    /// Free number; [`OWN_GROUP`] on shared links of Berth's, that of [`VethPair::group`] until a pair is tagged.
    pub group: u32,
    /// What its kind alone has.
    pub detail: Detail,
    /// Some of its kernel parameters.
    pub parameters: Parameters,
}

/// A veth pair to make, one end in each namespace, both down.
#[derive(Debug, Clone)]
pub struct VethPair<'a> {
    /// Name of the end in the socket's namespace.
    pub host: &'a str,
    /// Name of the other end.
    pub peer: &'a str,
    /// Descriptor of the namespace of the other end.
    pub peer_netns: RawFd,
    /// MTU of both ends in bytes; the kernel's default where absent.
    pub mtu: Option<u32>,
    /// Hardware address of the other end; random where absent.
    pub peer_mac: Option<Mac>,
    /// Group of this end, which says what it is for from the first instant on.
    pub group: u32,
}

/// What a bridge port is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortMode {
    /// See [`Link::hairpin`].
    pub hairpin: bool,
    /// See [`Link::isolated`].
    pub isolated: bool,
    /// See [`Link::locked`].
    pub locked: bool,
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mac(pub [u8; 6]);

/// The link called `name`; `None` where there is none.
///
/// # Errors
/// [`NetError`].
pub fn get(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetError> {
    let mut query = LinkMessage::default();
    query.attributes.push(LinkAttribute::IfName(name.to_owned()));
    look_up(socket, format!("looking up link {name}"), query)
}

/// The link with an index; `None` where there is none.
///
/// # Errors
/// [`NetError`].
pub fn by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, NetError> {
    let mut query = LinkMessage::default();
    query.header.index = index;
    look_up(socket, format!("looking up link number {index}"), query)
}

/// Whether a link is gone, or its name is another's. Does not wait for whoever changes links at the moment.
///
/// # Errors
/// [`NetError`].
pub fn is_gone(socket: &mut Socket, link: &Link) -> Result<bool, NetError> {
    match netdevice::name_to_index(&*socket, &link.name) {
        Ok(index) => Ok(index != link.index),
        Err(Errno::NODEV) => Ok(true),
        Err(_) => Ok(get(socket, &link.name)?.is_none_or(|found| found.index != link.index)),
    }
}

fn look_up(socket: &mut Socket, what: String, mut query: LinkMessage) -> Result<Option<Link>, NetError> {
    query.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let question = Message::route(what, 0, &RouteNetlinkMessage::GetLink(query));
    match socket.ask(&question) {
        Ok(answers) => answers.first().map(|answer| read(answer, &question.what)).transpose(),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// All links.
///
/// # Errors
/// [`NetError`].
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, NetError> {
    let mut query = LinkMessage::default();
    query.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let question = Message::route("listing links", NLM_F_DUMP, &RouteNetlinkMessage::GetLink(query));
    socket.ask(&question)?.iter().map(|answer| read(answer, &question.what)).collect()
}

/// Makes a bridge, down. Its address is given, so that ports coming and going do not change it.
///
/// # Errors
/// [`NetError`]; [`NetError::is_exists`] where the name is taken.
pub fn create_bridge(socket: &mut Socket, name: &str, mac: Mac, mtu: Option<u32>) -> Result<(), NetError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    message.attributes.push(LinkAttribute::Group(OWN_GROUP));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    create(socket, format!("creating bridge {name}"), message)
}

/// Makes a veth pair; the peer appears in its namespace under its final name.
///
/// # Errors
/// [`NetError`]; [`NetError::is_exists`] where one of the names is taken.
pub fn create_veth(socket: &mut Socket, pair: &VethPair<'_>) -> Result<(), NetError> {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(pair.peer.to_owned()));
    peer.attributes.push(LinkAttribute::NetNsFd(pair.peer_netns));
    peer.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
    peer.attributes.extend(pair.peer_mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(pair.host.to_owned()));
    message.attributes.push(LinkAttribute::Group(pair.group));
    message.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    create(socket, format!("creating link {} with its end {}", pair.host, pair.peer), message)
}

/// Removes a link; a veth takes its peer along. The kernel waits for traffic in flight (about 20 ms).
///
/// # Errors
/// [`NetError`]; [`NetError::is_missing`] where it is gone.
pub fn delete(socket: &mut Socket, link: &Link) -> Result<(), NetError> {
    socket.apply(&[deletion(link)])
}

/// The change that removes a link.
pub fn deletion(link: &Link) -> Message {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    Message::route(format!("removing link {}", link.name), 0, &RouteNetlinkMessage::DelLink(message))
}

/// The change that tags a link and brings it up, as a port of the bridge `controller` where there is one.
pub fn attach(link: &Link, controller: Option<u32>, alias: &str) -> Message {
    let mut message = change(link);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    message.attributes.push(LinkAttribute::Group(0));
    message.attributes.extend(controller.map(LinkAttribute::Controller));
    set(format!("attaching link {}", link.name), message)
}

/// The change that gives a link the hardware address that it has: neighbours are told of it anew, where it says so of
/// changes.
pub fn set_same_mac(link: &Link) -> Message {
    let mut message = change(link);
    message.attributes.push(LinkAttribute::Address(link.mac.0.to_vec()));
    set(format!("announcing link {}", link.name), message)
}

/// The change that gives a link its alias.
pub fn set_alias(link: &Link, alias: &str) -> Message {
    let mut message = change(link);
    message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    set(format!("tagging link {}", link.name), message)
}

/// The change that sets the mode of a bridge port.
pub fn set_port_mode(link: &Link, mode: PortMode) -> Message {
    let mut message = change(link);
    let mut flags = vec![InfoBridgePort::HairpinMode(mode.hairpin), InfoBridgePort::Isolated(mode.isolated)];
    if mode.locked {
        flags.push(InfoBridgePort::Locked(true));
    }
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(flags)),
    ]));
    set(format!("setting the port mode of link {}", link.name), message)
}

/// The change that makes a bridge tell VLANs apart.
pub fn set_vlan_filtering(link: &Link) -> Message {
    let mut message = change(link);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
    ]));
    set(format!("making bridge {} filter VLANs", link.name), message)
}

/// The change that brings a link up.
pub fn set_up(link: &Link) -> Message {
    let mut message = change(link);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    set(format!("bringing up link {}", link.name), message)
}

/// The change that takes a link down.
pub fn set_down(link: &Link) -> Message {
    let mut message = change(link);
    message.header.change_mask = LinkFlags::Up;
    set(format!("taking down link {}", link.name), message)
}

/// The change that makes a link receive every frame.
pub fn set_promiscuous(link: &Link) -> Message {
    let mut message = change(link);
    message.header.flags = LinkFlags::Promisc;
    message.header.change_mask = LinkFlags::Promisc;
    set(format!("setting link {} promiscuous", link.name), message)
}

/// The change that undoes [`set_promiscuous`].
pub fn clear_promiscuous(link: &Link) -> Message {
    let mut message = change(link);
    message.header.change_mask = LinkFlags::Promisc;
    set(format!("setting link {} not promiscuous", link.name), message)
}

/// The change that gives a link, which must be down, its name and its tag.
pub fn rename(link: &Link, name: &str, alias: &str) -> Message {
    let mut message = change(link);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    set(format!("renaming link {} to {name}", link.name), message)
}

pub(super) fn change(link: &Link) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message
}

pub(super) fn set(what: String, message: LinkMessage) -> Message {
    Message::route(what, 0, &RouteNetlinkMessage::NewLink(message))
}

pub(super) fn create(socket: &mut Socket, what: String, message: LinkMessage) -> Result<(), NetError> {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    socket.apply(&[Message::route(what, flags, &RouteNetlinkMessage::NewLink(message))])
}

fn read(answer: &Answer, what: &str) -> Result<Link, NetError> {
    let message: LinkMessage = decode(answer, what)?;
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        promiscuous: flags.contains(LinkFlags::Promisc),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::Link(index) => link.lower = Some(index),
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().map(Mac).unwrap_or_default(),
            LinkAttribute::OperState(state) => link.running = link.up && is_running(state),
            LinkAttribute::AfSpecUnspec(families) => link.parameters = Parameters::read(&families),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| read_info(&mut link, info)),
            _ => {}
        }
    }
    Ok(link)
}

fn read_info(link: &mut Link, info: LinkInfo) {
    match info {
        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
        LinkInfo::Data(data) => link.detail = Detail::read(data),
        LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
            for attribute in attributes {
                match attribute {
                    InfoBridgePort::HairpinMode(on) => link.hairpin = on,
                    InfoBridgePort::Isolated(on) => link.isolated = on,
                    InfoBridgePort::Locked(on) => link.locked = on,
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// Drivers that keep no operational state (loopback) report it as unknown.
fn is_running(state: State) -> bool {
    matches!(state, State::Up | State::Unknown)
}

impl Mac {
    /// A random address of the locally administered range.
    ///
    /// # Errors
    /// [`NetError::File`] without a source of random numbers.
    pub fn random() -> Result<Self, NetError> {
        let mut bytes = [0; 6];
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).map_err(|errno| {
            NetError::File { what: "reading", path: "/dev/urandom".into(), source: errno.into() }
        })?;
        bytes[0] = (bytes[0] | 0x02) & 0xfe;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is no unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAMac;

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let byte = |part: &str| match part.len() {
            2 if !part.starts_with('+') => u8::from_str_radix(part, 16).map_err(|_| NotAMac),
            _ => Err(NotAMac),
        };
        let bytes: Vec<u8> = text.split([':', '-']).map(byte).collect::<Result<_, _>>()?;
        let bytes: [u8; 6] = bytes.try_into().map_err(|_| NotAMac)?;
        // Group addresses and the zero address cannot belong to an interface.
        if bytes[0] & 1 == 1 || bytes == [0; 6] { Err(NotAMac) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(text.parse::<Mac>().ok().map(|mac| mac.to_string()).as_deref(), expect, "{text}");
        };
        check("c2:11:22:33:44:55", Some("c2:11:22:33:44:55"));
        check("C2-11-22-33-44-5f", Some("c2:11:22:33:44:5f"));
        check("01:00:5e:00:00:01", None);
        check("00:00:00:00:00:00", None);
        check("c2:11:22:33:44", None);
        check("c2:11:22:33:44:55:66", None);
        check("c2:11:22:33:44:+5", None);
        check("", None);
        let random = Mac::random().unwrap();
        assert_eq!(random.to_string().parse(), Ok(random));
    }
}

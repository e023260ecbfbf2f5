//! Settings of a link inside a namespace, and the way from a pod's interface to the host's end of it.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::error::NetError;
use super::link::{self, Link, Mac};
use super::netns::NetNs;
use super::socket::{Message, Socket, decode};

/// What a link is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// Index in its namespace.
    pub index: u32,
    /// Hardware address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Receives every frame.
    pub promiscuous: bool,
    /// Receives every multicast frame.
    pub all_multicast: bool,
    /// Length of the transmit queue in packets.
    pub queue: u32,
    /// Index of the link below it, or of a veth's other end.
    pub lower: Option<u32>,
    /// The number, in this namespace, of the one that [`Settings::lower`] is in; absent where that is the same.
    pub lower_netns: Option<i32>,
}

/// What is to be changed; `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// See [`Settings::mac`].
    pub mac: Option<Mac>,
    /// See [`Settings::mtu`].
    pub mtu: Option<u32>,
    /// See [`Settings::promiscuous`].
    pub promiscuous: Option<bool>,
    /// See [`Settings::all_multicast`].
    pub all_multicast: Option<bool>,
    /// See [`Settings::queue`].
    pub queue: Option<u32>,
}

impl Change {
    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The settings of the link called `name`; `None` where there is none.
///
/// # Errors
/// [`NetError`].
pub fn settings(socket: &mut Socket, name: &str) -> Result<Option<Settings>, NetError> {
    let mut query = LinkMessage::default();
    query.attributes.push(LinkAttribute::IfName(name.to_owned()));
    query.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let what = format!("looking up link {name}");
    let question = Message::route(what, 0, &RouteNetlinkMessage::GetLink(query));
    let answers = match socket.ask(&question) {
        Ok(answers) => answers,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(answer) = answers.first() else { return Ok(None) };
    Ok(Some(read(decode(answer, &question.what)?)))
}

fn read(message: LinkMessage) -> Settings {
    let flags = message.header.flags;
    let mut settings = Settings {
        index: message.header.index,
        promiscuous: flags.contains(LinkFlags::Promisc),
        all_multicast: flags.contains(LinkFlags::Allmulti),
        ..Settings::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => settings.mtu = mtu,
            LinkAttribute::TxQueueLen(length) => settings.queue = length,
            LinkAttribute::Address(bytes) => settings.mac = bytes.try_into().map(Mac).unwrap_or_default(),
            LinkAttribute::Link(index) => settings.lower = Some(index),
            LinkAttribute::LinkNetNsId(number) => settings.lower_netns = Some(number),
            _ => {}
        }
    }
    settings
}

/// Changes a link's settings, each on its own, so that a refusal names the one.
///
/// # Errors
/// [`NetError::Refused`].
pub fn apply(socket: &mut Socket, name: &str, index: u32, change: &Change) -> Result<(), NetError> {
    let mut messages = Vec::new();
    let mut push = |what: String, fill: &dyn Fn(&mut LinkMessage)| {
        let mut message = LinkMessage::default();
        message.header.index = index;
        fill(&mut message);
        messages.push(Message::route(what, 0, &RouteNetlinkMessage::NewLink(message)));
    };
    if let Some(mac) = change.mac {
        push(format!("setting the MAC address of {name} to {mac}"), &|message| {
            message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        });
    }
    if let Some(mtu) = change.mtu {
        push(format!("setting the MTU of {name} to {mtu}"), &|message| {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        });
    }
    if let Some(queue) = change.queue {
        push(format!("setting the queue length of {name} to {queue}"), &|message| {
            message.attributes.push(LinkAttribute::TxQueueLen(queue));
        });
    }
    for (what, flag, wanted) in [
        ("promiscuous", LinkFlags::Promisc, change.promiscuous),
        ("receiving all multicast", LinkFlags::Allmulti, change.all_multicast),
    ] {
        let Some(wanted) = wanted else { continue };
        push(format!("setting {name} {what}: {wanted}"), &|message| {
            message.header.change_mask = flag;
            message.header.flags = if wanted { flag } else { LinkFlags::empty() };
        });
    }
    socket.apply(&messages)
}

/// The host's end of the veth pair whose other end is `ifname` in `netns`; `None` where that is no veth, or is gone.
///
/// # Errors
/// [`NetError`], or that the namespace cannot be entered.
pub fn host_end<E>(host: &mut Socket, netns: &NetNs, ifname: &str) -> Result<Option<Link>, E>
where
    E: From<NetError> + From<super::netns::NetNsError>,
{
    let inside = netns.run(|| settings(&mut Socket::route()?, ifname))??;
    let Some(Settings { lower: Some(peer), index, .. }) = inside else { return Ok(None) };
    let Some(link) = link::by_index(host, peer)? else { return Ok(None) };
    let back = settings(host, &link.name)?.unwrap_or_default();
    // Indexes are the pod's to choose: that of a pair of its own could be that of another pod's.
    let leads_back = back.lower == Some(index) && back.lower_netns.is_some();
    let is_ours = link.kind == "veth" && leads_back && back.lower_netns == number_of(host, netns)?;
    Ok(is_ours.then_some(link))
}

/// The number of `netns` in the socket's namespace; `None` where it has none.
fn number_of(socket: &mut Socket, netns: &NetNs) -> Result<Option<i32>, NetError> {
    let mut query = NsidMessage::default();
    query.attributes.push(NsidAttribute::Fd(netns.raw_fd() as u32));
    let what = format!("looking up the number of network namespace {}", netns.path().display());
    let question = Message::route(what, 0, &RouteNetlinkMessage::GetNsId(query));
    let answers = socket.ask(&question)?;
    let Some(answer) = answers.first() else { return Ok(None) };
    let message: NsidMessage = decode(answer, &question.what)?;
    Ok(message.attributes.into_iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(number) => Some(number).filter(|number| *number >= 0),
        _ => None,
    }))
}

/// Makes an intermediate functional block: a link through which packets are sent to be queued. It is of `group` until
/// it is tagged.
///
/// # Errors
/// [`NetError`]; [`NetError::is_exists`] where the name is taken.
pub fn create_ifb(socket: &mut Socket, name: &str, mtu: u32, group: u32) -> Result<(), NetError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::Group(group));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
    let what = format!("creating link {name} of kind ifb");
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    socket.apply(&[Message::route(what, flags, &RouteNetlinkMessage::NewLink(message))])
}

/// The change that tags a link, which is of no group any more, and brings it up.
pub fn tag(link: &Link, alias: &str) -> Message {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    message.attributes.push(LinkAttribute::Group(0));
    Message::route(format!("bringing up link {}", link.name), 0, &RouteNetlinkMessage::NewLink(message))
}

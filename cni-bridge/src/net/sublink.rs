//! Links on top of another link (macvlan, ipvlan, VLAN), and links that stand in for hardware.

use std::os::fd::RawFd;

use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVlan, IpVlanMode, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, MacVlanMode,
};

use super::error::NetError;
use super::link::{self, Mac, OWN_GROUP};
use super::socket::Socket;

/// What only one kind of link has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// Nothing that matters here.
    #[default]
    Plain,
    /// A macvlan's mode, in the kernel's number.
    MacVlan(u32),
    /// An ipvlan's mode, in the kernel's number.
    IpVlan(u16),
    /// A VLAN's number.
    Vlan(u16),
    /// Whether a bridge filters VLANs; absent where the kernel cannot.
    Bridge(Option<bool>),
}

/// The kind of a link to make on top of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Shares the lower link's wire under an Ethernet address of its own.
    MacVlan {
        /// Who may talk to whom.
        mode: MacVlanMode,
        /// Length of the queue for broadcasts.
        queue: Option<u32>,
    },
    /// Shares the lower link's Ethernet address too.
    IpVlan(IpVlanMode),
    /// The frames with one VLAN tag.
    Vlan(u16),
}

/// A link to make on top of another, down.
#[derive(Debug, Clone)]
pub struct SubLink<'a> {
    /// Name.
    pub name: &'a str,
    /// Index of the lower link, in the socket's namespace.
    pub lower: u32,
    /// Descriptor of the namespace that the link is made in; the socket's where absent.
    pub netns: Option<RawFd>,
    /// MTU in bytes; the lower link's where absent.
    pub mtu: Option<u32>,
    /// Hardware address; the kernel's choice where absent.
    pub mac: Option<Mac>,
    /// Kind.
    pub kind: Kind,
}

impl Detail {
    /// From the kernel's description.
    pub(super) fn read(data: InfoData) -> Self {
        match data {
            InfoData::MacVlan(list) => {
                let mode = list.into_iter().find_map(|part| match part {
                    InfoMacVlan::Mode(mode) => Some(u32::from(mode)),
                    _ => None,
                });
                mode.map_or(Self::Plain, Self::MacVlan)
            }
            InfoData::IpVlan(list) => {
                let mode = list.into_iter().find_map(|part| match part {
                    InfoIpVlan::Mode(mode) => Some(u16::from(mode)),
                    _ => None,
                });
                mode.map_or(Self::Plain, Self::IpVlan)
            }
            InfoData::Vlan(list) => {
                let id = list.into_iter().find_map(|part| match part {
                    InfoVlan::Id(id) => Some(id),
                    _ => None,
                });
                id.map_or(Self::Plain, Self::Vlan)
            }
            InfoData::Bridge(list) => Self::Bridge(list.into_iter().find_map(|part| match part {
                InfoBridge::VlanFiltering(on) => Some(on),
                _ => None,
            })),
            _ => Self::Plain,
        }
    }
}

impl Kind {
    /// The kind's name, as the kernel says it and as its module is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::MacVlan { .. } => "macvlan",
            Self::IpVlan(_) => "ipvlan",
            Self::Vlan(_) => "vlan",
        }
    }

    /// The kernel module that brings the kind.
    pub fn module(self) -> &'static str {
        match self {
            Self::Vlan(_) => "8021q",
            other => other.name(),
        }
    }

    /// What a link of this kind shows when it is as asked for.
    pub fn detail(self) -> Detail {
        match self {
            Self::MacVlan { mode, .. } => Detail::MacVlan(mode.into()),
            Self::IpVlan(mode) => Detail::IpVlan(mode.into()),
            Self::Vlan(id) => Detail::Vlan(id),
        }
    }

    fn describe(self) -> Vec<LinkInfo> {
        let (kind, data) = match self {
            Self::MacVlan { mode, queue } => {
                let mut list = vec![InfoMacVlan::Mode(mode)];
                list.extend(queue.map(InfoMacVlan::BcQueueLen));
                (InfoKind::MacVlan, InfoData::MacVlan(list))
            }
            Self::IpVlan(mode) => (InfoKind::IpVlan, InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)])),
            Self::Vlan(id) => (InfoKind::Vlan, InfoData::Vlan(vec![InfoVlan::Id(id)])),
        };
        vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]
    }
}

/// Makes a link on top of another.
///
/// # Errors
/// [`NetError`]; [`NetError::is_exists`] where the name, or a VLAN's number, is taken;
/// [`NetError::is_unsupported`] where the kernel lacks the kind.
pub fn create(socket: &mut Socket, wanted: &SubLink<'_>) -> Result<(), NetError> {
    let what = format!("creating {} link {}", wanted.kind.name(), wanted.name);
    link::create(socket, what, message(wanted))
}

/// As [`create`], for a link of Berth's own that several attachments share, in the group that says so. It is down too.
///
/// # Errors
/// As [`create`].
pub fn create_shared(socket: &mut Socket, wanted: &SubLink<'_>) -> Result<(), NetError> {
    let mut message = message(wanted);
    message.attributes.push(LinkAttribute::Group(OWN_GROUP));
    link::create(socket, format!("creating {} link {}", wanted.kind.name(), wanted.name), message)
}

fn message(wanted: &SubLink<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(wanted.name.to_owned()));
    message.attributes.push(LinkAttribute::Link(wanted.lower));
    message.attributes.extend(wanted.netns.map(LinkAttribute::NetNsFd));
    message.attributes.extend(wanted.mtu.map(LinkAttribute::Mtu));
    message.attributes.extend(wanted.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.push(LinkAttribute::LinkInfo(wanted.kind.describe()));
    message
}

/// Makes a shared link that leads nowhere, up: a `dummy`, or an `ifb` where the kernel has no dummies.
///
/// # Errors
/// As [`create`].
pub fn create_nowhere(socket: &mut Socket, name: &str, mtu: Option<u32>) -> Result<(), NetError> {
    let mut make = |kind: InfoKind| {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::Group(OWN_GROUP));
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        let what = format!("creating {kind} link {name}");
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        link::create(socket, what, message)
    };
    match make(InfoKind::Dummy) {
        Err(error) if error.is_unsupported() => match make(InfoKind::Ifb) {
            // The first one is what is missing.
            Err(second) if second.is_unsupported() => Err(error),
            other => other,
        },
        other => other,
    }
}

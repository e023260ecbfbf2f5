//! Bridge ports: their VLANs, and the addresses that are told to be behind them.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::NetError;
use super::link::{Link, Mac};
use super::socket::{Message, Socket, decode};

/// VLANs of a port, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlans {
    /// First.
    pub first: u16,
    /// Last.
    pub last: u16,
    /// How they go through the port.
    pub tagging: Tagging,
}

/// How a VLAN's frames go through a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tagging {
    /// With their tag.
    Tagged,
    /// Without; and what comes in without a tag is of this VLAN.
    Native,
}

/// The change that makes a port carry VLANs.
pub fn add_vlans(link: &Link, vlans: Vlans) -> Message {
    let what = format!("adding VLANs {}-{} to port {}", vlans.first, vlans.last, link.name);
    Message::route(what, 0, &RouteNetlinkMessage::SetLink(message(link, vlans)))
}

/// The change that takes VLANs from a port.
pub fn remove_vlans(link: &Link, vlans: Vlans) -> Message {
    let what = format!("removing VLANs {}-{} from port {}", vlans.first, vlans.last, link.name);
    Message::route(what, 0, &RouteNetlinkMessage::DelLink(message(link, vlans)))
}

fn message(link: &Link, vlans: Vlans) -> LinkMessage {
    let own = match vlans.tagging {
        Tagging::Tagged => BridgeVlanInfoFlags::empty(),
        Tagging::Native => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
    };
    let entry = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags: own | flags, vid });
    let mut list = vec![AfSpecBridge::Flags(BridgeFlag::Controller)];
    if vlans.first == vlans.last {
        list.push(entry(vlans.first, BridgeVlanInfoFlags::empty()));
    } else {
        list.push(entry(vlans.first, BridgeVlanInfoFlags::RangeBegin));
        list.push(entry(vlans.last, BridgeVlanInfoFlags::RangeEnd));
    }
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = link.index;
    message.attributes.push(LinkAttribute::AfSpecBridge(list));
    message
}

/// The VLANs of a port, one by one.
///
/// # Errors
/// [`NetError`].
pub fn vlans(socket: &mut Socket, link: &Link) -> Result<Vec<(u16, Tagging)>, NetError> {
    let mut query = LinkMessage::default();
    query.header.interface_family = AddressFamily::Bridge;
    query.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
    let question =
        Message::route("listing VLANs of bridge ports", NLM_F_DUMP, &RouteNetlinkMessage::GetLink(query));
    let mut found = Vec::new();
    for answer in socket.ask(&question)? {
        let message: LinkMessage = decode(&answer, &question.what)?;
        if message.header.index != link.index {
            continue;
        }
        for attribute in message.attributes {
            let LinkAttribute::AfSpecBridge(list) = attribute else { continue };
            found.extend(list.into_iter().filter_map(|entry| match entry {
                AfSpecBridge::VlanInfo(entry) if entry.flags.contains(BridgeVlanInfoFlags::Pvid) => {
                    Some((entry.vid, Tagging::Native))
                }
                AfSpecBridge::VlanInfo(entry) => Some((entry.vid, Tagging::Tagged)),
                _ => None,
            }));
        }
    }
    Ok(found)
}

/// The change that tells the bridge that `mac` is behind a port, in `vlan` where it filters VLANs.
pub fn expect_behind(link: &Link, mac: Mac, vlan: Option<u16>) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link.index;
    message.header.state = NeighbourState::Noarp;
    // Sticky: an address that shows up behind another port does not move there.
    message.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.extend(vlan.map(NeighbourAttribute::Vlan));
    let what = format!("telling the bridge that {mac} is behind port {}", link.name);
    Message::route(what, NLM_F_CREATE | NLM_F_REPLACE, &RouteNetlinkMessage::NewNeighbour(message))
}

/// The addresses that the bridge was told to be behind a port.
///
/// # Errors
/// [`NetError`].
pub fn expected_behind(socket: &mut Socket, link: &Link) -> Result<Vec<Mac>, NetError> {
    let mut query = NeighbourMessage::default();
    query.header.family = AddressFamily::Bridge;
    query.header.ifindex = link.index;
    let what = format!("listing the addresses behind port {}", link.name);
    let question = Message::route(what, NLM_F_DUMP, &RouteNetlinkMessage::GetNeighbour(query));
    let mut found = Vec::new();
    for answer in socket.ask(&question)? {
        let message: NeighbourMessage = decode(&answer, &question.what)?;
        if message.header.ifindex != link.index || message.header.state != NeighbourState::Noarp {
            continue;
        }
        found.extend(message.attributes.into_iter().filter_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => bytes.try_into().ok().map(Mac),
            _ => None,
        }));
    }
    Ok(found)
}

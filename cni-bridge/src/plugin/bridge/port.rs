//! The host's end of a pod's pair as a port of the bridge: its mode, its VLANs, the address that it may send from.

use proto::cni::{CniError, ErrorCode};

use super::conf::{BridgeConf, DefaultVlan};
use crate::ledger::Ledger;
use crate::net::link::{self, Link, PortMode, VethPair};
use crate::net::netns::{self, NetNs};
use crate::net::port::{self, Tagging, Vlans};
use crate::net::socket::{Message, Socket};
use crate::net::{parameters, sysctl};
use crate::owner::{Owner, hashed_name};
use crate::plugin::{damaged, pod};

/// The VLAN that the kernel gives every port.
const DEFAULT_VLAN: Vlans = Vlans { first: 1, last: 1, tagging: Tagging::Native };

/// Makes the port, down to its VLANs, and brings it up.
///
/// # Errors
/// [`ErrorCode::IO_FAILURE`] where the kernel cannot lock ports; [`ErrorCode::PLUGIN`].
pub fn connect(
    host: &mut Socket,
    conf: &BridgeConf,
    (bridge, host_end): (&Link, &Link),
    (pod_end, owner): (&Link, &Owner),
) -> Result<(), CniError> {
    let mut changes = vec![
        parameters::stay_without_addresses(host_end),
        link::attach(host_end, Some(bridge.index), owner.tag()),
    ];
    changes.extend(vlan_changes(conf, host_end));
    if conf.port.locked {
        changes.extend(
            vlans_of_frames(conf).into_iter().map(|id| port::expect_behind(host_end, pod_end.mac, id)),
        );
    }
    if conf.port != PortMode::default() {
        changes.push(link::set_port_mode(host_end, conf.port));
    }
    host.apply(&changes)?;
    // A kernel that does not know of it ignores it.
    if conf.port.locked && !pod::expect_link(host, &host_end.name)?.locked {
        let msg = "macspoofchk: the kernel cannot lock bridge ports; Linux 5.18 or newer can";
        return Err(CniError::new(ErrorCode::IO_FAILURE, msg));
    }
    Ok(())
}

fn vlan_changes(conf: &BridgeConf, link: &Link) -> Vec<Message> {
    if !conf.filters_vlans() {
        return Vec::new();
    }
    let mut changes = Vec::new();
    if conf.default_vlan == DefaultVlan::Removed && conf.vlan != Some(1) {
        changes.push(port::remove_vlans(link, DEFAULT_VLAN));
    }
    changes.extend(conf.port_vlans().into_iter().map(|vlans| port::add_vlans(link, vlans)));
    changes
}

/// The VLANs in which the bridge sees the pod's frames; `None` where it sees none.
fn vlans_of_frames(conf: &BridgeConf) -> Vec<Option<u16>> {
    if !conf.filters_vlans() {
        return vec![None];
    }
    conf.port_vlans().into_iter().flat_map(|vlans| (vlans.first..=vlans.last).map(Some)).collect()
}

/// The link that carries the gateway addresses of a VLAN: one end of a pair, whose other end is a port in the VLAN.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] where the name is another link's; [`ErrorCode::PLUGIN`].
pub fn gateway_link(host: &mut Socket, conf: &BridgeConf, bridge: &Link, id: u16) -> Result<Link, CniError> {
    let name = conf.gateway_link();
    let inner = hashed_name("vgwp", &name);
    let port_is_whole = |port: &Link| port.controller == Some(bridge.index) && port.up;
    if let (Some(link), Some(port)) = (link::get(host, &name)?, link::get(host, &inner)?)
        && link.up
        && port_is_whole(&port)
    {
        return Ok(link);
    }
    let _ordered = Ledger::open(&conf.state_dir)?;
    match link::get(host, &name)? {
        Some(found) if found.kind != "veth" => {
            return Err(CniError::config("vlan", format!("link {name} exists and is no veth")));
        }
        Some(_) => {}
        None => {
            let own = NetNs::open(std::path::Path::new(netns::OWN))?;
            let pair = VethPair {
                host: &name,
                peer: &inner,
                peer_netns: own.raw_fd(),
                mtu: conf.mtu,
                peer_mac: None,
                group: 0,
            };
            link::create_veth(host, &pair)?;
        }
    }
    let (link, port) = (pod::expect_link(host, &name)?, pod::expect_link(host, &inner)?);
    sysctl::own_routes(&name)?;
    let vlan = Vlans { first: id, last: id, tagging: Tagging::Native };
    let mut changes =
        vec![parameters::stay_without_addresses(&port), link::attach(&port, Some(bridge.index), "")];
    if conf.default_vlan == DefaultVlan::Removed && id != 1 {
        changes.push(port::remove_vlans(&port, DEFAULT_VLAN));
    }
    changes.extend([port::add_vlans(&port, vlan), link::set_up(&link)]);
    host.apply(&changes)?;
    pod::expect_link(host, &name)
}

/// Verifies that the link that carries a VLAN's gateway addresses leads into the VLAN.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] with the first damage.
pub fn check_gateway(host: &mut Socket, bridge: &Link, link: &Link, id: u16) -> Result<(), CniError> {
    if !link.up {
        return Err(damaged(format!("link {} is down", link.name)));
    }
    let other = link.lower.map(|index| link::by_index(host, index)).transpose()?.flatten();
    match other.filter(|port| port.up && port.controller == Some(bridge.index)) {
        Some(port) if port::vlans(host, &port)?.iter().any(|(found, _)| *found == id) => Ok(()),
        Some(port) => Err(damaged(format!("link {} does not carry VLAN {id}", port.name))),
        None => Err(damaged(format!("{} does not lead to a port of {} that is up", link.name, bridge.name))),
    }
}

/// Verifies mode, VLANs and expected address of a port.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] with the first damage.
pub fn check(host: &mut Socket, conf: &BridgeConf, port: &Link, mac: &str) -> Result<(), CniError> {
    let mode = PortMode { hairpin: port.hairpin, isolated: port.isolated, locked: port.locked };
    if mode != conf.port {
        return Err(damaged(format!("the port mode of link {} differs from the configuration", port.name)));
    }
    if conf.port.locked {
        let found = port::expected_behind(host, port)?;
        if !mac.is_empty() && !found.iter().any(|known| known.to_string().eq_ignore_ascii_case(mac)) {
            return Err(damaged(format!("link {} does not expect the address {mac}", port.name)));
        }
    }
    if !conf.filters_vlans() {
        return Ok(());
    }
    let found = port::vlans(host, port)?;
    for vlans in conf.port_vlans() {
        let carried = |id: u16| {
            found.contains(&(id, vlans.tagging))
                || (conf.vlan == Some(id) && found.contains(&(id, Tagging::Native)))
        };
        if let Some(lost) = (vlans.first..=vlans.last).find(|id| !carried(*id)) {
            return Err(damaged(format!("link {} does not carry VLAN {lost} as configured", port.name)));
        }
    }
    Ok(())
}

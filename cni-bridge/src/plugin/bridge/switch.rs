//! The bridge itself: made if it is not there, never removed.

use std::net::IpAddr;

use ipnet::IpNet;
use proto::cni::{CniError, ErrorCode};

use super::conf::BridgeConf;
use crate::net::link::{self, Link, Mac};
use crate::net::socket::Socket;
use crate::net::{NetError, addr, sysctl};

/// The bridge, made and set as configured.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] where the name belongs to another kind of link; [`ErrorCode::PLUGIN`].
pub fn ensure(socket: &mut Socket, conf: &BridgeConf) -> Result<Link, CniError> {
    let bridge = match link::get(socket, &conf.bridge)? {
        Some(bridge) => bridge,
        None => create(socket, conf)?,
    };
    if bridge.kind != "bridge" {
        return Err(CniError::config("bridge", format!("link {} exists and is no bridge", conf.bridge)));
    }
    let mut changes = Vec::new();
    if !bridge.up {
        changes.push(link::set_up(&bridge));
    }
    if conf.promiscuous && !bridge.promiscuous {
        changes.push(link::set_promiscuous(&bridge));
    }
    socket.apply(&changes)?;
    Ok(bridge)
}

fn create(socket: &mut Socket, conf: &BridgeConf) -> Result<Link, CniError> {
    match link::create_bridge(socket, &conf.bridge, Mac::random()?, conf.mtu) {
        Ok(()) => {
            // What the pods' other end announces must not change the host's routing.
            sysctl::set_if_present(&format!("ipv6/conf/{}/accept_ra", conf.bridge), "0")?;
        }
        // Another ADD was faster.
        Err(error) if error.is_exists() => {}
        Err(error) => return Err(error.into()),
    }
    link::get(socket, &conf.bridge)?
        .ok_or_else(|| CniError::new(ErrorCode::PLUGIN, format!("bridge {} vanished", conf.bridge)))
}

/// Gives the bridge the gateway address of a pod's subnet, and turns forwarding on.
///
/// # Errors
/// [`ErrorCode::PLUGIN`] where it has another address of the subnet's family, unless `forceAddress` replaces that.
pub fn ensure_gateway(
    socket: &mut Socket,
    conf: &BridgeConf,
    bridge: &Link,
    gateway: IpNet,
) -> Result<(), CniError> {
    match socket.apply(&[addr::add(bridge, gateway)]) {
        Err(error) if error.is_exists() => {}
        Err(error) => return Err(error.into()),
        Ok(()) => settle(socket, conf, bridge, gateway)?,
    }
    let key = match gateway.addr() {
        IpAddr::V4(_) => "ipv4/ip_forward",
        IpAddr::V6(_) => "ipv6/conf/all/forwarding",
    };
    Ok(sysctl::ensure(key, "1")?)
}

/// The address is new: an older one that conflicts goes, or the new one does.
fn settle(socket: &mut Socket, conf: &BridgeConf, bridge: &Link, gateway: IpNet) -> Result<(), CniError> {
    let conflicting = |other: &&IpNet| match (other, &gateway) {
        (IpNet::V4(_), IpNet::V4(_)) => **other != gateway,
        // IPv6 subnets live side by side unless they overlap.
        (IpNet::V6(_), IpNet::V6(_)) => {
            **other != gateway && (other.contains(&gateway.addr()) || gateway.contains(&other.addr()))
        }
        _ => false,
    };
    let found = addr::list(socket, bridge)?;
    let others: Vec<&IpNet> = found.iter().filter(conflicting).collect();
    let Some(first) = others.first() else { return Ok(()) };
    if conf.force_address {
        let changes: Vec<_> = others.iter().map(|other| addr::remove(bridge, **other)).collect();
        return ignore_missing(socket.apply(&changes)).map_err(CniError::from);
    }
    let msg = format!("{:?} already has an IP address different from {gateway}: {first}", conf.bridge);
    ignore_missing(socket.apply(&[addr::remove(bridge, gateway)]))?;
    Err(CniError::new(ErrorCode::PLUGIN, msg))
}

fn ignore_missing(outcome: Result<(), NetError>) -> Result<(), NetError> {
    match outcome {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

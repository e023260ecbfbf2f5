//! Host ports for mappings that ask for a free one, with host port 0.
//!
//! Where the search begins follows from owner and mapping: a pod whose rules are made again gets the same port, unless
//! somebody took it meanwhile.

use std::collections::BTreeSet;

use proto::cni::result::PublishedPort;
use proto::cni::{CniError, CniResult, ErrorCode};

use super::conf::{HostAddress, Mapping, Protocol};
use super::{conditions, rules};
use crate::net::NetError;
use crate::net::nft::{self, Target};
use crate::net::socket::Socket;
use crate::owner::Owner;

/// The kernel's default range for ports that nobody names.
const FIRST: u16 = 32768;
const COUNT: u16 = 28232;

/// Fills in the ports that `result` tells, or that the owner holds.
///
/// # Errors
/// [`NetError`].
pub fn recall(
    socket: &mut Socket,
    owner: &Owner,
    mappings: &mut [Mapping],
    result: &CniResult,
) -> Result<(), NetError> {
    let mut told: Vec<&PublishedPort> = result.port_mappings.iter().collect();
    for mapping in mappings.iter_mut().filter(|mapping| mapping.host_port == 0) {
        if let Some(at) = told.iter().position(|port| is_for(port, mapping)) {
            mapping.host_port = told.remove(at).host_port;
        }
    }
    if mappings.iter().all(|mapping| mapping.host_port != 0) {
        return Ok(());
    }
    let held = held(socket)?;
    for mapping in mappings.iter_mut().filter(|mapping| mapping.host_port == 0) {
        let own = held.iter().find(|port| {
            port.owner == owner.tag()
                && port.protocol == mapping.protocol as u8
                && port.container_port == mapping.container_port
        });
        mapping.host_port = own.map_or(0, |port| port.host_port);
    }
    Ok(())
}

/// Chooses ports that neither a pod nor a socket of this host has.
///
/// # Errors
/// [`ErrorCode::TRY_AGAIN_LATER`] where there is none.
pub fn choose(socket: &mut Socket, owner: &Owner, mappings: &mut [Mapping]) -> Result<(), CniError> {
    if mappings.iter().all(|mapping| mapping.host_port != 0) {
        return Ok(());
    }
    let mut taken: BTreeSet<(u8, u16)> =
        held(socket)?.iter().map(|port| (port.protocol, port.host_port)).collect();
    taken.extend(mappings.iter().map(|mapping| (mapping.protocol as u8, mapping.host_port)));
    taken.extend(listening());
    for mapping in mappings.iter_mut().filter(|mapping| mapping.host_port == 0) {
        let start = beginning(owner, mapping);
        let free = (0..COUNT)
            .map(|step| FIRST + ((u32::from(start) + u32::from(step)) % u32::from(COUNT)) as u16)
            .find(|port| !taken.contains(&(mapping.protocol as u8, *port)));
        let none =
            || CniError::new(ErrorCode::TRY_AGAIN_LATER, format!("no free {}", mapping.protocol.as_str()));
        mapping.host_port = free.ok_or_else(none)?;
        taken.insert((mapping.protocol as u8, mapping.host_port));
    }
    Ok(())
}

/// What the result tells of a mapping.
pub fn told(mapping: &Mapping) -> PublishedPort {
    PublishedPort {
        host_port: mapping.host_port,
        container_port: mapping.container_port,
        protocol: mapping.protocol.as_str().to_owned(),
        host_ip: host_ip(mapping.host),
    }
}

fn is_for(port: &PublishedPort, mapping: &Mapping) -> bool {
    port.container_port == mapping.container_port
        && port.protocol == mapping.protocol.as_str()
        && port.host_ip == host_ip(mapping.host)
}

fn host_ip(host: HostAddress) -> String {
    match host {
        HostAddress::Any => String::new(),
        HostAddress::Any4 => "0.0.0.0".to_owned(),
        HostAddress::Any6 => "::".to_owned(),
        HostAddress::One(address) => address.to_string(),
    }
}

/// A published port as the maps have it.
struct Held {
    owner: String,
    protocol: u8,
    host_port: u16,
    container_port: u16,
}

fn held(socket: &mut Socket) -> Result<Vec<Held>, NetError> {
    let mut held = Vec::new();
    for (table, map) in [rules::table().id(), conditions::table().id()]
        .into_iter()
        .flat_map(|table| ["ports4", "ports6", "addrs4", "addrs6"].map(|map| (table, map)))
    {
        for element in nft::elements(socket, table, map)?.unwrap_or_default() {
            let Target::Value(value) = &element.data else { continue };
            // Keys end with protocol and port, values with the port, each padded to 4 bytes.
            let (Some(key), Some(data)) = (element.key.last_chunk::<8>(), value.last_chunk::<4>()) else {
                continue;
            };
            held.push(Held {
                protocol: key[0],
                host_port: u16::from_be_bytes([key[4], key[5]]),
                container_port: u16::from_be_bytes([data[0], data[1]]),
                owner: element.owner,
            });
        }
    }
    Ok(held)
}

/// Ports that sockets of this host are bound to.
fn listening() -> Vec<(u8, u16)> {
    let mut found = Vec::new();
    for (file, protocol) in
        [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)]
    {
        // A kernel without IPv6 has no such file.
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        found.extend(text.lines().filter_map(bound_port).map(|port| (protocol as u8, port)));
    }
    found
}

/// The local port in a line of `/proc/net/tcp`.
fn bound_port(line: &str) -> Option<u16> {
    let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

fn beginning(owner: &Owner, mapping: &Mapping) -> u16 {
    let text = format!("{owner} {mapping} {}", mapping.container_port);
    let hash =
        text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash ^ hash >> 16) % u32::from(COUNT)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_read() {
        let check = |line: &str, expect: Option<u16>| assert_eq!(bound_port(line), expect, "{line}");
        check("  sl  local_address rem_address   st tx_queue", None);
        check("   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000", Some(8080));
        check("   1: 00000000000000000000000000000000:0016 0000:0000 0A", Some(22));
        check("", None);
    }
}

//! Flows that must not go on as they began when a port changes hands. TCP notices by itself.

use std::net::IpAddr;

use ipnet::IpNet;

use super::conf::{Family, HostAddress, Mapping, Protocol};
use crate::net::NetError;
use crate::net::conntrack::{Flow, Like, forget, forget_alike};
use crate::net::nft::{Element, Target};
use crate::net::socket::Socket;

/// With more ports than this one listing is cheaper than a walk for each.
const FEW: usize = 8;

/// Forgets flows after ports were published: [`to_ports`] or [`to_others`].
pub type Forget = fn(&mut Socket, &[Mapping], &[IpNet]) -> Result<(), NetError>;

/// Forgets flows to ports that are published for a new pod: nobody can have reached it before.
///
/// # Errors
/// [`NetError`].
pub fn to_ports(socket: &mut Socket, mappings: &[Mapping], pods: &[IpNet]) -> Result<(), NetError> {
    let without_end = mappings.iter().filter(|mapping| mapping.protocol != Protocol::Tcp);
    if without_end.clone().count() > FEW {
        return to_others(socket, mappings, pods);
    }
    for mapping in without_end {
        for pod in pods.iter().map(IpNet::addr).filter(|pod| mapping.host.covers(Family::of(*pod))) {
            let address = match mapping.host {
                HostAddress::One(address) => Some(address),
                HostAddress::Any | HostAddress::Any4 | HostAddress::Any6 => None,
            };
            forget_alike(socket, (mapping.protocol as u8, pod), Like::AimedAt(mapping.host_port, address))?;
        }
    }
    Ok(())
}

/// Forgets flows to published ports that somebody else answers than the pod, or nobody.
///
/// # Errors
/// [`NetError`].
pub fn to_others(socket: &mut Socket, mappings: &[Mapping], pods: &[IpNet]) -> Result<(), NetError> {
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        let own: Vec<&Mapping> = mappings.iter().filter(|mapping| mapping.protocol == protocol).collect();
        if own.is_empty() {
            continue;
        }
        for pod in pods.iter().map(IpNet::addr) {
            let published = |flow: &Flow| {
                let own_port = |mapping: &&Mapping| {
                    mapping.host_port == flow.port && mapping.host.covers(Family::of(pod))
                };
                own.iter().any(own_port) && flow.answers != pod
            };
            forget(socket, (protocol as u8, pod), &published)?;
        }
    }
    Ok(())
}

/// Forgets flows that the removed elements sent to a pod.
///
/// # Errors
/// [`NetError`].
pub fn after_removal(socket: &mut Socket, removed: &[(&'static str, Element)]) -> Result<(), NetError> {
    let mut targets: Vec<(u8, IpAddr)> = removed.iter().filter_map(target).collect();
    targets.sort_unstable();
    targets.dedup();
    for (protocol, pod) in targets {
        forget_alike(socket, (protocol, pod), Like::AnsweredBy(pod))?;
    }
    Ok(())
}

/// Protocol and pod address of an element of the maps of ports; `None` for TCP and for other maps.
fn target((map, element): &(&'static str, Element)) -> Option<(u8, IpAddr)> {
    let Target::Value(value) = &element.data else { return None };
    let protocol = *match *map {
        "ports4" | "ports6" => element.key.first()?,
        "addrs4" => element.key.get(4)?,
        "addrs6" => element.key.get(16)?,
        _ => return None,
    };
    let pod = if map.ends_with('4') {
        IpAddr::from(<[u8; 4]>::try_from(value.get(..4)?).ok()?)
    } else {
        IpAddr::from(<[u8; 16]>::try_from(value.get(..16)?).ok()?)
    };
    (protocol != Protocol::Tcp as u8).then_some((protocol, pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_removed_elements() {
        let check = |map: &'static str, key: &[u8], value: &[u8], expect: Option<(u8, &str)>| {
            let element =
                Element { key: key.to_vec(), data: Target::Value(value.to_vec()), owner: String::new() };
            let expect = expect.map(|(protocol, pod)| (protocol, pod.parse().unwrap()));
            assert_eq!(target(&(map, element)), expect, "{map}");
        };
        check("ports4", &[17, 0, 0, 0, 0, 53, 0, 0], &[10, 0, 0, 2, 0, 53, 0, 0], Some((17, "10.0.0.2")));
        check("ports4", &[6, 0, 0, 0, 0, 53, 0, 0], &[10, 0, 0, 2, 0, 53, 0, 0], None);
        check(
            "addrs4",
            &[127, 0, 0, 1, 132, 0, 0, 0, 0, 53],
            &[10, 0, 0, 2, 0, 53, 0, 0],
            Some((132, "10.0.0.2")),
        );
        check("pods4", &[10, 0, 0, 2], &[17; 8], None);
        check("ports6", &[17], &[0; 4], None);
    }
}

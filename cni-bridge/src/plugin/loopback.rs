//! loopback: brings the namespace's `lo` up.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};
use proto::cni::result::{Interface, IpConfig};
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::{damaged, open_netns};
use crate::net::netns::{NetNs, NetNsError};
use crate::net::socket::Socket;
use crate::net::{NetError, addr, link};

/// The plugin. CNI_IFNAME is not used: the interface is always `lo`.
#[derive(Debug, Clone, Copy)]
pub struct Loopback;

const LO: &str = "lo";

impl Plugin for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn add(&self, request: &Request, _: &Attachment, netns: &Path) -> Result<CniResult, CniError> {
        let netns = open_netns(request, netns)?;
        let addresses = netns.run(|| -> Result<_, NetError> {
            let mut socket = Socket::route()?;
            let lo = lo(&mut socket)?;
            socket.apply(&[link::set_up(&lo)])?;
            addr::list(&mut socket, &lo)
        })??;
        if let Some(foreign) = addresses.iter().find(|address| !address.addr().is_loopback()) {
            return Err(CniError::new(
                ErrorCode::PLUGIN,
                format!("lo has the address {foreign}, which is no loopback"),
            ));
        }
        if let Some(previous) = request.conf.prev_result()? {
            return Ok(previous);
        }
        let ip = |address| IpConfig { address, gateway: None, interface: Some(0) };
        Ok(CniResult {
            interfaces: vec![Interface {
                name: LO.to_owned(),
                mac: "00:00:00:00:00:00".to_owned(),
                sandbox: netns.path().display().to_string(),
                ..Interface::default()
            }],
            ips: addresses.into_iter().map(ip).collect(),
            ..CniResult::default()
        })
    }

    fn del(&self, _: &Request, _: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
        let Some(path) = netns else { return Ok(()) };
        let netns = match NetNs::open(path) {
            Ok(netns) => netns,
            Err(NetNsError::Gone(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // The runtime's own lo must survive a namespace path that has come to mean another.
        if netns.is_own()? {
            return Ok(());
        }
        netns.run(|| -> Result<(), NetError> {
            let mut socket = Socket::route()?;
            let lo = lo(&mut socket)?;
            socket.apply(&[link::set_down(&lo)])
        })??;
        Ok(())
    }

    fn check(&self, request: &Request, _: &Attachment, netns: &Path) -> Result<(), CniError> {
        let netns = open_netns(request, netns)?;
        let (lo, found) = netns.run(|| -> Result<_, NetError> {
            let mut socket = Socket::route()?;
            let lo = lo(&mut socket)?;
            let found = addr::list(&mut socket, &lo)?;
            Ok((lo, found))
        })??;
        if !lo.up {
            return Err(damaged("lo is down"));
        }
        match expected(request)?.into_iter().find(|address| !found.contains(address)) {
            Some(lost) => Err(damaged(format!("lo lacks the address {lost}"))),
            None => Ok(()),
        }
    }

    fn gc(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }
}

/// 127.0.0.1, and what ADD found there.
fn expected(request: &Request) -> Result<Vec<IpNet>, CniError> {
    let mut expected = vec![IpNet::from(Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 8))];
    if let Some(result) = request.conf.prev_result()? {
        let of_lo = |ip: &&IpConfig| {
            let interface = ip.interface.and_then(|index| result.interfaces.get(index));
            interface.is_some_and(|interface| interface.name == LO)
        };
        expected.extend(result.ips.iter().filter(of_lo).map(|ip| ip.address));
    }
    Ok(expected)
}

fn lo(socket: &mut Socket) -> Result<link::Link, NetError> {
    let missing =
        || NetError::Answer { what: "looking up link lo".to_owned(), problem: "not there".to_owned() };
    link::get(socket, LO)?.ok_or_else(missing)
}

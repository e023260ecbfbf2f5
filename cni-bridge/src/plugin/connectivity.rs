//! What pods that are attached need of the host beside their own links: forwarding, and rules that have an effect.

use std::net::IpAddr;

use proto::cni::{CniError, ErrorCode, NetworkName};

use crate::net::nft::{self, Table};
use crate::net::socket::Socket;
use crate::net::{NetError, addr, link, parameters, sysctl};
use crate::owner::Owner;

/// Each of our tables that pods depend on is whole enough to have an effect.
///
/// # Errors
/// [`ErrorCode::LIMITED_CONNECTIVITY`]; [`ErrorCode::NOT_AVAILABLE`] where nf_tables cannot be asked.
pub fn expect_rules(tables: &[Table]) -> Result<(), CniError> {
    let lost = || {
        let mut socket = Socket::netfilter()?;
        for table in tables {
            if let Some(chain) = nft::lost_hook(&mut socket, table)? {
                return Ok(Some(format!("nf_tables table {} has lost its chain {chain}", table.name)));
            }
        }
        Ok(None)
    };
    match lost() {
        Ok(None) => Ok(()),
        Ok(Some(damage)) => Err(CniError::new(ErrorCode::LIMITED_CONNECTIVITY, damage)),
        Err(error) if NetError::is_without_nf_tables(&error) => Ok(()),
        Err(error) => Err(CniError::from_error(ErrorCode::NOT_AVAILABLE, &error)),
    }
}

/// The kernel parameter, below `/proc/sys/net`, that turns forwarding on for an address's family.
pub fn forwarding(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" }
}

/// Turns forwarding on for pods with these addresses.
///
/// # Errors
/// [`NetError::File`].
pub fn forward(host: &mut Socket, addresses: impl Iterator<Item = IpAddr>) -> Result<(), NetError> {
    for address in addresses {
        // What the kernel does not tell this way, it may tell the other.
        if !parameters::forwards(host, address).unwrap_or(false) {
            sysctl::ensure(forwarding(address), "1")?;
        }
    }
    Ok(())
}

/// The host forwards for the network's pods, of each family that `gateway` has an address of.
///
/// # Errors
/// [`ErrorCode::LIMITED_CONNECTIVITY`]; [`ErrorCode::PLUGIN`].
pub fn expect_forwarding(host: &mut Socket, network: &NetworkName, gateway: &str) -> Result<(), CniError> {
    let Some(found) = link::get(host, gateway)? else { return Ok(()) };
    let addresses = addr::list(host, &found)?;
    for (v4, key) in [(true, "ipv4/ip_forward"), (false, "ipv6/conf/all/forwarding")] {
        // Every link has an address of its own in IPv6.
        let own = |address: &ipnet::IpNet| match address {
            ipnet::IpNet::V4(_) => v4,
            ipnet::IpNet::V6(v6) => !v4 && !v6.addr().is_unicast_link_local(),
        };
        if !addresses.iter().any(own) || sysctl::get(key)? != "0" {
            continue;
        }
        let of_network =
            |alias: &str| Owner::of_tag(alias).is_some_and(|owner| owner.parts().0 == network.as_str());
        if link::list(host)?.iter().any(|link| of_network(&link.alias)) {
            let msg = format!("forwarding is off ({key}), and pods have {gateway} as their gateway");
            return Err(CniError::new(ErrorCode::LIMITED_CONNECTIVITY, msg));
        }
    }
    Ok(())
}

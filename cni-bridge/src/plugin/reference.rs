//! What the reference plugins leave in nf_tables for an attachment that Berth's now undo: on a node that changed from
//! the ones to the others, pods live on.
//!
//! Their chains have names that follow from network and container, and their rules comments that name both. Nothing
//! of it is ever made here.

use proto::cni::{Attachment, NetworkName};
use sha2::{Digest, Sha512};

use crate::net::NetError;
use crate::net::nft::{self, Batch, FoundRule, TableFamily, TableId};
use crate::net::socket::Socket;

/// The longest name of a chain of `iptables`.
const CHAIN_NAME: usize = 28;
const NAT: [TableId<'static>; 2] =
    [TableId { family: TableFamily::Ip4, name: "nat" }, TableId { family: TableFamily::Ip6, name: "nat" }];
const HOST_PORTS: [TableId<'static>; 2] = [
    TableId { family: TableFamily::Ip4, name: "cni_hostport" },
    TableId { family: TableFamily::Ip6, name: "cni_hostport" },
];
const MASQUERADE: TableId<'static> = TableId { family: TableFamily::Inet, name: "cni_plugins_masquerade" };

/// Removes the host ports of a container, of both backends.
///
/// # Errors
/// [`NetError`].
pub fn remove_ports(
    socket: &mut Socket,
    network: &NetworkName,
    attachment: &Attachment,
) -> Result<(), NetError> {
    let chain = chain_name("CNI-DN-", network, attachment);
    for table in NAT {
        remove_chain(socket, table, "CNI-HOSTPORT-DNAT", &chain)?;
    }
    let own = |rule: &FoundRule| rule.comment == attachment.container_id.as_str();
    for table in HOST_PORTS {
        if !nft::chain_exists(socket, table, "hostports")? {
            continue;
        }
        remove_rules(socket, table, &["hostports", "hostip_hostports"], &own)?;
    }
    Ok(())
}

/// Removes the masquerading of a container, of both backends.
///
/// # Errors
/// [`NetError`].
pub fn remove_masquerade(
    socket: &mut Socket,
    network: &NetworkName,
    attachment: &Attachment,
) -> Result<(), NetError> {
    let chain = chain_name("CNI-", network, attachment);
    for table in NAT {
        remove_chain(socket, table, "POSTROUTING", &chain)?;
    }
    let comment = format!("net: {network}, if: {}, id: {}", attachment.ifname, attachment.container_id);
    remove_rules(socket, MASQUERADE, &["masq_checks"], &|rule| rule.comment == comment)
}

/// Prefix and the beginning of a hash.
fn chain_name(prefix: &str, network: &NetworkName, attachment: &Attachment) -> String {
    let hash = Sha512::digest(format!("{network}{}", attachment.container_id));
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = format!("{prefix}{digits}");
    name.truncate(CHAIN_NAME);
    name
}

/// Removes a chain with the jumps to it from another one.
fn remove_chain(
    socket: &mut Socket,
    table: TableId<'static>,
    from: &str,
    chain: &str,
) -> Result<(), NetError> {
    if !nft::chain_exists(socket, table, chain)? {
        return Ok(());
    }
    let mut batch = Batch::new(table);
    let rules = nft::rules_of(socket, table, from)?;
    let jumps = rules.iter().filter(|rule| rule.jumps_to().as_deref() == Some(chain));
    jumps.for_each(|rule| batch.delete_rule(from, rule.handle));
    batch.flush_chain(chain);
    batch.delete_chain(chain);
    ignore_missing(batch.commit(socket, None))
}

fn remove_rules(
    socket: &mut Socket,
    table: TableId<'static>,
    chains: &[&str],
    own: &dyn Fn(&FoundRule) -> bool,
) -> Result<(), NetError> {
    let mut batch = Batch::new(table);
    for chain in chains {
        let rules = nft::rules_of(socket, table, chain)?;
        rules.iter().filter(|rule| own(rule)).for_each(|rule| batch.delete_rule(chain, rule.handle));
    }
    ignore_missing(batch.commit(socket, None))
}

/// Somebody else was faster.
fn ignore_missing(outcome: Result<(), NetError>) -> Result<(), NetError> {
    match outcome {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_references() {
        let attachment = Attachment { container_id: "c1".parse().unwrap(), ifname: "eth0".parse().unwrap() };
        let network = "net".parse().unwrap();
        // The SHA-512 of "netc1" begins so.
        assert_eq!(chain_name("CNI-", &network, &attachment), "CNI-623e1c388032b20529218ecc");
        assert_eq!(chain_name("CNI-DN-", &network, &attachment), "CNI-DN-623e1c388032b20529218");
    }
}

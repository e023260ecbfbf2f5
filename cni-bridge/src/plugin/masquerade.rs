//! `ipMasq`: what pods send out of their networks leaves with the host's address; what they send to each other,
//! within a network or from one masqueraded network to another, keeps its source.
//!
//! Table inet `berth_masquerade`: the maps `pods4` and `pods6` send each pod's packets to the chain of its subnet;
//! the chain `inside` knows all such subnets; [`claims`] is for addresses that several networks have.

use std::path::Path;

use ipnet::IpNet;
use proto::cni::{Attachment, CniError, NetworkName, Request};

use super::claims::{self, Wanted};
use super::{keys, prev_result};
use crate::net::NetError;
use crate::net::nft::{
    Chain, Element, Expression, Field, HeaderField, Hook, Map, Meta, OnDemand, Rule, Table, TableFamily,
    Tables, Verdict,
};
use crate::net::socket::Socket;
use crate::owner::Owner;
use crate::plugin::predecessor::{self, Trade};

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Masquerades what the owner sends from `addresses`; `base` is where locks are.
///
/// # Errors
/// [`CniError`].
pub fn add(socket: &mut Socket, base: &Path, owner: &Owner, addresses: &[IpNet]) -> Result<(), CniError> {
    let (shared, chains) = (entries(owner, addresses), chains(addresses));
    let wanted = Wanted { alone: &[], shared: &shared, chains: &chains };
    Ok(claims::place(socket, base, &table(), wanted, Table::insert)?)
}

/// Makes lost rules of an attachment again, from the result of its ADD.
///
/// # Errors
/// [`CniError`].
pub fn repair(request: &Request, attachment: &Attachment) -> Result<(), CniError> {
    let owner = Owner::new(&request.conf.name, attachment)?;
    let result = prev_result(request)?;
    let own =
        result.ips.iter().filter(|ip| match ip.interface.and_then(|index| result.interfaces.get(index)) {
            Some(interface) => interface.name == attachment.ifname.as_str() && !interface.sandbox.is_empty(),
            None => true,
        });
    let addresses: Vec<IpNet> = own.map(|ip| ip.address).collect();
    let mut socket = Socket::netfilter()?;
    if damage(&mut socket, &owner, &addresses)?.is_none() {
        return Ok(());
    }
    let (shared, chains) = (entries(&owner, &addresses), chains(&addresses));
    let wanted = Wanted { alone: &[], shared: &shared, chains: &chains };
    Ok(claims::place(&mut socket, &keys::state_dir(request)?, &table(), wanted, Table::mend)?)
}

/// Forgets everything of the owner, whoever made it.
///
/// # Errors
/// [`NetError`].
pub fn remove(socket: &mut Socket, base: &Path, tables: &Tables, owner: &Owner) -> Result<(), NetError> {
    if claims::remove_of(socket, base, (tables, &table()), owner)?.is_empty() {
        predecessor::forget(socket, tables, Trade::Masquerade, &|trace| trace.is_of(owner))?;
    }
    Ok(())
}

/// Forgets everything of the network that belongs to no valid attachment.
///
/// # Errors
/// [`NetError`].
pub fn gc(
    socket: &mut Socket,
    base: &Path,
    network: &NetworkName,
    valid: &[Attachment],
) -> Result<(), NetError> {
    claims::gc(socket, base, &table(), network, valid)?;
    let tables = Tables::read(socket)?;
    predecessor::forget(socket, &tables, Trade::Masquerade, &|trace| trace.is_stale(network, valid))
}

/// What is missing, in words.
///
/// # Errors
/// [`NetError`].
pub fn damage(socket: &mut Socket, owner: &Owner, addresses: &[IpNet]) -> Result<Option<String>, NetError> {
    let wanted = claims::expected(socket, &table(), &entries(owner, addresses))?;
    let damage = table().damage(socket, &wanted, &chains(addresses))?;
    // What the reference plugin made serves as well.
    let made_by_other = damage.is_some() && predecessor::has_any(socket, Trade::Masquerade, owner)?;
    Ok(damage.filter(|_| !made_by_other))
}

fn entries(owner: &Owner, addresses: &[IpNet]) -> Vec<(&'static str, Element)> {
    let entry = |address: &IpNet| {
        let (map, key) = match address {
            IpNet::V4(v4) => ("pods4", v4.addr().octets().to_vec()),
            IpNet::V6(v6) => ("pods6", v6.addr().octets().to_vec()),
        };
        (map, Element::jump(key, &leaving(address), owner.tag()))
    };
    addresses.iter().map(entry).collect()
}

fn chains(addresses: &[IpNet]) -> Vec<OnDemand> {
    let mut chains: Vec<OnDemand> = Vec::new();
    for address in addresses {
        let chain = leaving(address);
        if chains.iter().any(|known| known.chain == chain) {
            continue;
        }
        let multicast: IpNet = match address {
            IpNet::V4(_) => IpNet::V4(ipnet::Ipv4Net::new_assert([224, 0, 0, 0].into(), 4)),
            IpNet::V6(_) => IpNet::V6(ipnet::Ipv6Net::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8)),
        };
        let rule = |comment: String, mut steps: Vec<Expression>, last: Expression| {
            steps.push(last);
            Rule { comment, steps }
        };
        let accept = Expression::Verdict(Verdict::Accept);
        let inside = Expression::Verdict(Verdict::Jump("inside".to_owned()));
        chains.push(OnDemand {
            rules: vec![
                rule(format!("{chain}: other pods"), Vec::new(), inside),
                rule(format!("{chain}: multicast"), to_subnet(&multicast), accept.clone()),
                rule(format!("{chain}: outside"), Vec::new(), Expression::Masquerade),
            ],
            beside: Some(("inside", rule(format!("inside {}", address.trunc()), to_subnet(address), accept))),
            chain,
        });
    }
    chains
}

/// Name of the chain for packets from a subnet; tools do not accept colons in names.
fn leaving(address: &IpNet) -> String {
    format!("leaving_{}", address.trunc()).replace(':', "-")
}

/// Goes on only for packets to `subnet`.
fn to_subnet(subnet: &IpNet) -> Vec<Expression> {
    let field = if subnet.addr().is_ipv4() { HeaderField::Destination4 } else { HeaderField::Destination6 };
    matches(subnet, field)
}

/// Goes on only if the address in `field` lies in `subnet`.
pub(super) fn matches(subnet: &IpNet, field: HeaderField) -> Vec<Expression> {
    let (family, network, mask) = match subnet {
        IpNet::V4(v4) => (NFPROTO_IPV4, v4.network().octets().to_vec(), v4.netmask().octets().to_vec()),
        IpNet::V6(v6) => (NFPROTO_IPV6, v6.network().octets().to_vec(), v6.netmask().octets().to_vec()),
    };
    let mut steps = of_family(family);
    steps.extend([
        Expression::Payload(field, 0),
        Expression::And { register: 0, mask },
        Expression::Equal(0, network),
    ]);
    steps
}

/// Goes on only for packets of an address family.
pub(super) fn of_family(family: u8) -> Vec<Expression> {
    vec![Expression::Meta(Meta::Family, 0), Expression::Equal(0, vec![family])]
}

/// The table of masqueraded pods.
pub fn table() -> Table {
    let by_source = |name: &'static str, family: u8, field: HeaderField| {
        let mut steps = of_family(family);
        steps.push(Expression::Payload(field, 0));
        steps.push(Expression::Decide { map: name.to_owned(), key: 0 });
        Rule { comment: format!("what {name} send"), steps }
    };
    let postrouting =
        Chain { name: "postrouting".to_owned(), hook: Some(Hook { kind: "nat", number: 4, priority: 100 }) };
    Table {
        family: TableFamily::Inet,
        name: "berth_masquerade",
        maps: vec![
            Map { name: "pods4", key: &[Field::Ipv4], data: &[Field::Verdict] },
            Map { name: "pods6", key: &[Field::Ipv6], data: &[Field::Verdict] },
            claims::CLAIMS,
        ],
        chains: vec![
            (Chain { name: "inside".to_owned(), hook: None }, Vec::new()),
            (
                postrouting,
                vec![
                    by_source("pods4", NFPROTO_IPV4, HeaderField::Source4),
                    by_source("pods6", NFPROTO_IPV6, HeaderField::Source6),
                ],
            ),
        ],
    }
}

//! `isolateNetworks`: pods of networks that say so do not reach each other across networks. Published ports stay
//! reachable from everywhere.
//!
//! Table inet `berth_isolation`: the maps `from4` and `from6` send what each such pod sends to the chain of its
//! network, which lets it stay in the network; the maps `to4` and `to6` know whom it must not reach outside.

use std::path::Path;

use ipnet::IpNet;
use proto::cni::{Attachment, CniError, NetworkName};

use super::claims;
use super::masquerade::of_family;
use crate::net::NetError;
use crate::net::nft::{
    Chain, Element, Expression, Field, HeaderField, Hook, Map, Meta, OnDemand, Rule, Table, TableFamily,
    Tables, Verdict,
};
use crate::net::socket::Socket;
use crate::owner::{Owner, hashed_name, is_stale};

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// The chain that refuses.
const REFUSE: &str = "refuse";

/// A pod's addresses, behind a link of the host.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// Whose it is.
    pub owner: &'a Owner,
    /// The link.
    pub network: &'a str,
    /// The addresses.
    pub addresses: &'a [IpNet],
}

/// Isolates the pod; `base` is where locks are.
///
/// # Errors
/// [`CniError`].
pub fn add(socket: &mut Socket, base: &Path, pod: Pod<'_>) -> Result<(), CniError> {
    claims::place(socket, base, &table(), (&entries(pod), &[leaving(pod.network)]), Table::insert)
}

/// Makes lost rules of the pod again.
///
/// # Errors
/// [`CniError`].
pub fn mend(socket: &mut Socket, base: &Path, pod: Pod<'_>) -> Result<(), CniError> {
    if damage(socket, pod)?.is_none() {
        return Ok(());
    }
    claims::place(socket, base, &table(), (&entries(pod), &[leaving(pod.network)]), Table::mend)
}

/// Forgets everything of the owner.
///
/// # Errors
/// [`NetError`].
pub fn remove(socket: &mut Socket, base: &Path, tables: &Tables, owner: &Owner) -> Result<(), NetError> {
    claims::remove_of(socket, base, (tables, &table()), owner).map(|_| ())
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
    claims::remove(socket, base, &table(), &|tag| is_stale(tag, network, valid)).map(|_| ())
}

/// What is missing, in words.
///
/// # Errors
/// [`NetError`].
pub fn damage(socket: &mut Socket, pod: Pod<'_>) -> Result<Option<String>, NetError> {
    let wanted = claims::expected(socket, &table(), &entries(pod))?;
    table().damage(socket, &wanted, &[leaving(pod.network)])
}

fn entries(Pod { owner, network, addresses }: Pod<'_>) -> Vec<(&'static str, Element)> {
    let chain = chain_of(network);
    let entry = |address: &IpNet| {
        let (from, to, key) = match address {
            IpNet::V4(v4) => ("from4", "to4", v4.addr().octets().to_vec()),
            IpNet::V6(v6) => ("from6", "to6", v6.addr().octets().to_vec()),
        };
        let target = Element::jump(key.clone(), REFUSE, owner.tag());
        [(from, Element::jump(key, &chain, owner.tag())), (to, target)]
    };
    addresses.iter().flat_map(entry).collect()
}

/// The chain for what leaves a network's pods.
fn leaving(network: &str) -> OnDemand {
    let mut name = network.as_bytes().to_vec();
    name.resize(16, 0);
    let inside = vec![
        Expression::Meta(Meta::OutputName, 0),
        Expression::Equal(0, name),
        Expression::Verdict(Verdict::Return),
    ];
    let rules = vec![
        Rule { comment: format!("inside {network}"), steps: inside },
        decide("to4", NFPROTO_IPV4, HeaderField::Destination4),
        decide("to6", NFPROTO_IPV6, HeaderField::Destination6),
    ];
    OnDemand { chain: chain_of(network), rules, beside: None }
}

/// Tools accept letters, digits and lines in the names of chains.
fn chain_of(network: &str) -> String {
    let plain = network.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if plain { format!("leaving_{network}") } else { hashed_name("from", network) }
}

fn decide(map: &'static str, family: u8, field: HeaderField) -> Rule {
    let mut steps = of_family(family);
    steps.push(Expression::Payload(field, 0));
    steps.push(Expression::Decide { map: map.to_owned(), key: 0 });
    Rule { comment: format!("pods in {map}"), steps }
}

fn table() -> Table {
    const TRANSLATED: u32 = 1 << 5;
    let published = vec![
        Expression::ConntrackStatus(0),
        Expression::And { register: 0, mask: TRANSLATED.to_ne_bytes().to_vec() },
        Expression::Differs(0, vec![0; 4]),
        Expression::Verdict(Verdict::Accept),
    ];
    let forward =
        Chain { name: "forward".to_owned(), hook: Some(Hook { kind: "filter", number: 2, priority: -5 }) };
    let map = |name, key| Map { name, key, data: &[Field::Verdict] };
    let refusal =
        Rule { comment: "another network".to_owned(), steps: vec![Expression::Verdict(Verdict::Drop)] };
    Table {
        family: TableFamily::Inet,
        name: "berth_isolation",
        maps: vec![
            map("from4", &[Field::Ipv4]),
            map("from6", &[Field::Ipv6]),
            map("to4", &[Field::Ipv4]),
            map("to6", &[Field::Ipv6]),
            claims::CLAIMS,
        ],
        chains: vec![
            (Chain { name: REFUSE.to_owned(), hook: None }, vec![refusal]),
            (
                forward,
                vec![
                    Rule { comment: "published ports".to_owned(), steps: published },
                    decide("from4", NFPROTO_IPV4, HeaderField::Source4),
                    decide("from6", NFPROTO_IPV6, HeaderField::Source6),
                ],
            ),
        ],
    }
}

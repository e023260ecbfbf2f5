//! `isolateNetworks`: pods of networks that say so do not reach each other across networks. Published ports stay
//! reachable from everywhere.
//!
//! Networks are told apart by the links of the host that they are behind: addresses a pod can give itself.
//!
//! Table inet `berth_isolation`: the chain `sources` sends what comes from such a network to the network's own chain,
//! which lets it stay there; the chain `targets` knows the other such networks. Both hold rules for a network as long
//! as the maps hold an address of one of its pods; no packet is looked up in these. What is published is what has its
//! destination rewritten, whoever did that: the proxy of services too.

use std::path::Path;

use ipnet::IpNet;
use proto::cni::CniError;

use super::claims::{self, Wanted};
use crate::net::NetError;
use crate::net::nft::{
    Chain, Element, Expression, Field, Hook, Map, Meta, OnDemand, Place, Rule, Table, TableFamily, Tables,
    Verdict,
};
use crate::net::socket::Socket;
use crate::owner::{Owner, hashed_name};

/// The chain that knows the networks which are not to be left.
const SOURCES: &str = "sources";
/// The chain that knows the networks which are not to be entered.
const TARGETS: &str = "targets";

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
    place(socket, base, pod, Table::insert)
}

/// Makes lost rules of the pod again.
///
/// # Errors
/// [`CniError`].
pub fn mend(socket: &mut Socket, base: &Path, pod: Pod<'_>) -> Result<(), CniError> {
    if damage(socket, pod)?.is_none() {
        return Ok(());
    }
    place(socket, base, pod, Table::mend)
}

fn place(socket: &mut Socket, base: &Path, pod: Pod<'_>, how: Place) -> Result<(), CniError> {
    let wanted = Wanted { alone: &[], shared: &entries(pod), chains: &chains(pod.network) };
    Ok(claims::place(socket, base, &table(), wanted, how)?)
}

/// Forgets everything of the owner.
///
/// # Errors
/// [`NetError`].
pub fn remove(socket: &mut Socket, base: &Path, tables: &Tables, owner: &Owner) -> Result<(), NetError> {
    claims::remove_of(socket, base, (tables, &table()), owner).map(|_| ())
}

/// What is missing, in words.
///
/// # Errors
/// [`NetError`].
pub fn damage(socket: &mut Socket, pod: Pod<'_>) -> Result<Option<String>, NetError> {
    let wanted = claims::expected(socket, &table(), &entries(pod))?;
    table().damage(socket, &wanted, &chains(pod.network))
}

fn entries(Pod { owner, network, addresses }: Pod<'_>) -> Vec<(&'static str, Element)> {
    let [leaving, entering] = chain_names(network);
    let entry = |address: &IpNet| {
        let (from, to, key) = match address {
            IpNet::V4(v4) => ("from4", "to4", v4.addr().octets().to_vec()),
            IpNet::V6(v6) => ("from6", "to6", v6.addr().octets().to_vec()),
        };
        let target = Element::jump(key.clone(), &entering, owner.tag());
        [(from, Element::jump(key, &leaving, owner.tag())), (to, target)]
    };
    addresses.iter().flat_map(entry).collect()
}

/// The chains for what leaves a network's link and for what enters it.
fn chains(network: &str) -> [OnDemand; 2] {
    let [leaving, entering] = chain_names(network);
    let jump = |chain: &str| Expression::Verdict(Verdict::Jump(chain.to_owned()));
    let rule = |comment: String, steps: Vec<Expression>| Rule { comment, steps };
    let stays = [of_link(Meta::OutputName, network), vec![Expression::Verdict(Verdict::Return)]].concat();
    let from = [of_link(Meta::InputName, network), vec![jump(&leaving)]].concat();
    let to = [of_link(Meta::OutputName, network), vec![jump(&entering)]].concat();
    [
        OnDemand {
            rules: vec![
                rule(format!("inside {network}"), stays),
                rule(format!("out of {network}"), vec![jump(TARGETS)]),
            ],
            beside: Some((SOURCES, rule(format!("from {network}"), from))),
            chain: leaving,
        },
        OnDemand {
            rules: vec![rule(format!("into {network}"), vec![Expression::Verdict(Verdict::Drop)])],
            beside: Some((TARGETS, rule(format!("to {network}"), to))),
            chain: entering,
        },
    ]
}

/// Goes on only for packets of a link.
fn of_link(which: Meta, link: &str) -> Vec<Expression> {
    let mut name = link.as_bytes().to_vec();
    name.resize(16, 0);
    vec![Expression::Meta(which, 0), Expression::Equal(0, name)]
}

/// Tools accept letters, digits and lines in the names of chains.
fn chain_names(network: &str) -> [String; 2] {
    let plain = network.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match plain {
        true => [format!("out_of_{network}"), format!("into_{network}")],
        false => [hashed_name("out", network), hashed_name("into", network)],
    }
}

/// The table of isolated networks.
pub fn table() -> Table {
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
    let sources = vec![Expression::Verdict(Verdict::Jump(SOURCES.to_owned()))];
    let collecting = |name: &str| (Chain { name: name.to_owned(), hook: None }, Vec::new());
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
            collecting(TARGETS),
            collecting(SOURCES),
            (
                forward,
                vec![
                    Rule { comment: "published ports".to_owned(), steps: published },
                    Rule { comment: "isolated networks".to_owned(), steps: sources },
                ],
            ),
        ],
    }
}

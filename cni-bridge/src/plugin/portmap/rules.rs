//! The nf_tables side of published ports.
//!
//! Table inet `berth_portmap`: packets to an address of this host are looked up by protocol and port, first with
//! their destination address (`addrs4`, `addrs6`), then without (`ports4`, `ports6`), and sent to the pod that is
//! found, with a mark. Of marked packets, `pods4` and `pods6` lead from a pod to the chain that rewrites sources which could not be answered.
//!
//! Table inet `berth_localnet`: routing packets from 127.0.0.1 to a pod needs `route_localnet` on the link to it,
//! which would also let pods reach what listens on the host's loopback only. Its rules forbid that, and stay as long
//! as the setting does, beyond the last published port.

use std::net::IpAddr;

use ipnet::IpNet;

use super::conf::{Family, HostAddress, Mapping, Snat};
use crate::net::nft::{
    Chain, Element, Expression, Field, HeaderField, Hook, Map, Meta, OnDemand, Rule, Table, TableFamily,
    Target, Verdict,
};
use crate::owner::Owner;
use crate::plugin::claims;
use crate::plugin::masquerade::{matches, of_family};

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const ROUTE_LOCAL: u32 = 2;
const DESTINATION_NAT: u32 = 0x20;
/// The mark of a packet whose destination was rewritten here: what others send to a pod, a service's proxy for one, is
/// theirs to masquerade. The bit is the one that the reference plugin uses unless told otherwise.
const PUBLISHED: u32 = 1 << 13;
/// A register behind those that a look-up fills.
const SPARE: u8 = 8;
/// Index of `lo` in every network namespace.
const LO: u32 = 1;

/// The elements that publish `mappings` for a pod with `addresses`, with the mapping that each comes from.
pub fn published(
    owner: &Owner,
    mappings: &[Mapping],
    addresses: &[IpNet],
) -> Vec<(&'static str, Element, usize)> {
    let mut elements = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        for address in
            addresses.iter().map(IpNet::addr).filter(|address| mapping.host.covers(Family::of(*address)))
        {
            let (map, mut key) = match (mapping.host, address) {
                (HostAddress::One(IpAddr::V4(host)), _) => ("addrs4", host.octets().to_vec()),
                (HostAddress::One(IpAddr::V6(host)), _) => ("addrs6", host.octets().to_vec()),
                (_, IpAddr::V4(_)) => ("ports4", Vec::new()),
                (_, IpAddr::V6(_)) => ("ports6", Vec::new()),
            };
            key.extend(port_key(mapping));
            let mut target = octets(address);
            target.extend(mapping.container_port.to_be_bytes());
            target.extend([0; 2]);
            elements.push((
                map,
                Element { key, data: Target::Value(target), owner: owner.tag().to_owned() },
                index,
            ));
        }
    }
    elements
}

/// The part of a key that every map of ports ends with: protocol and port.
pub fn port_key(mapping: &Mapping) -> Vec<u8> {
    let [high, low] = mapping.host_port.to_be_bytes();
    vec![mapping.protocol as u8, 0, 0, 0, high, low, 0, 0]
}

/// The elements and chains that rewrite sources on the way to `addresses`.
pub fn sources(
    owner: &Owner,
    snat: Snat,
    addresses: &[IpNet],
) -> (Vec<(&'static str, Element)>, Vec<OnDemand>) {
    let chain = |address: &IpNet| match snat {
        Snat::No => None,
        Snat::All => Some(OnDemand {
            chain: "masquerade_all".to_owned(),
            rules: vec![Rule { comment: "everything".to_owned(), steps: vec![Expression::Masquerade] }],
            beside: None,
        }),
        Snat::Needed => Some(from_subnet(address)),
    };
    let (mut elements, mut chains): (Vec<_>, Vec<OnDemand>) = (Vec::new(), Vec::new());
    for address in addresses {
        let Some(chain) = chain(address) else { continue };
        let map = if address.addr().is_ipv4() { "pods4" } else { "pods6" };
        elements.push((map, Element::jump(octets(address.addr()), &chain.chain, owner.tag())));
        if !chains.contains(&chain) {
            chains.push(chain);
        }
    }
    (elements, chains)
}

/// Rewrites what comes from the pod's own subnet, whose answer would take the short way, and from the loopback.
fn from_subnet(address: &IpNet) -> OnDemand {
    let subnet = address.trunc();
    let chain = format!("from_{subnet}").replace(':', "-");
    let from = |comment: String, subnet: &IpNet, field: HeaderField| {
        let mut steps = matches(subnet, field);
        steps.push(Expression::Masquerade);
        Rule { comment, steps }
    };
    let rules = match subnet {
        IpNet::V4(_) => vec![
            from(format!("{chain}: the same subnet"), &subnet, HeaderField::Source4),
            from(format!("{chain}: loopback"), &loopback(), HeaderField::Source4),
        ],
        IpNet::V6(_) => vec![from(format!("{chain}: the same subnet"), &subnet, HeaderField::Source6)],
    };
    OnDemand { chain, rules, beside: None }
}

/// The table of published ports.
pub fn table() -> Table {
    let jump = || vec![Rule { comment: "published ports".to_owned(), steps: vec![jump_to("publish")] }];
    let nat = |name: &str, number: u32, priority: i32| Chain {
        name: name.to_owned(),
        hook: Some(Hook { kind: "nat", number, priority }),
    };
    let output =
        vec![Rule { comment: "published ports, from this host".to_owned(), steps: vec![jump_to("publish")] }];
    Table {
        family: TableFamily::Inet,
        name: "berth_portmap",
        maps: vec![
            Map { name: "ports4", key: &[Field::Protocol, Field::Port], data: &[Field::Ipv4, Field::Port] },
            Map { name: "ports6", key: &[Field::Protocol, Field::Port], data: &[Field::Ipv6, Field::Port] },
            Map {
                name: "addrs4",
                key: &[Field::Ipv4, Field::Protocol, Field::Port],
                data: &[Field::Ipv4, Field::Port],
            },
            Map {
                name: "addrs6",
                key: &[Field::Ipv6, Field::Protocol, Field::Port],
                data: &[Field::Ipv6, Field::Port],
            },
            Map { name: "pods4", key: &[Field::Ipv4], data: &[Field::Verdict] },
            Map { name: "pods6", key: &[Field::Ipv6], data: &[Field::Verdict] },
            claims::CLAIMS,
        ],
        chains: vec![
            (Chain { name: "publish".to_owned(), hook: None }, publish()),
            (nat("prerouting", 0, -100), jump()),
            (nat("output", 3, -100), output),
            (
                nat("postrouting", 4, 100),
                vec![
                    to_pod("pods4", NFPROTO_IPV4, HeaderField::Destination4),
                    to_pod("pods6", NFPROTO_IPV6, HeaderField::Destination6),
                ],
            ),
        ],
    }
}

/// The table that keeps the loopback closed.
pub fn guard() -> Table {
    let drop = |comment: &str, field: HeaderField| {
        let mut steps =
            vec![Expression::Meta(Meta::InputLink, 0), Expression::Differs(0, LO.to_ne_bytes().to_vec())];
        steps.extend(matches(&loopback(), field));
        steps.push(Expression::Verdict(Verdict::Drop));
        Rule { comment: comment.to_owned(), steps }
    };
    let chain = Chain {
        name: "prerouting".to_owned(),
        hook: Some(Hook { kind: "filter", number: 0, priority: -300 }),
    };
    let rules = vec![
        drop("from outside to the loopback", HeaderField::Destination4),
        drop("from outside as the loopback", HeaderField::Source4),
    ];
    Table {
        family: TableFamily::Inet,
        name: "berth_localnet",
        maps: Vec::new(),
        chains: vec![(chain, rules)],
    }
}

fn not_local() -> Rule {
    Rule {
        comment: "not to this host".to_owned(),
        steps: vec![
            Expression::DestinationType(0),
            Expression::Differs(0, ROUTE_LOCAL.to_ne_bytes().to_vec()),
            Expression::Verdict(Verdict::Return),
        ],
    }
}

fn publish() -> Vec<Rule> {
    let mut rules = vec![not_local()];
    rules.extend(["4", "6"].into_iter().flat_map(look_ups));
    rules
}

/// The rules that lead to chains of conditions.
pub fn publish_when() -> Vec<Rule> {
    let rule = |suffix: &str| {
        let (_, _, mut steps) = destination(suffix);
        let map = format!("when{suffix}");
        steps.extend([
            Expression::Meta(Meta::Protocol, 0),
            Expression::Payload(HeaderField::DestinationPort, 1),
            Expression::Decide { map: map.clone(), key: 0 },
        ]);
        Rule { comment: format!("conditions of {map}"), steps }
    };
    vec![not_local(), rule("4"), rule("6")]
}

/// The rules that look up the published ports of an address family, `4` or `6`.
pub fn look_ups(suffix: &str) -> [Rule; 2] {
    let (family, width, start) = destination(suffix);
    [
        look_up(format!("addrs{suffix}"), start.clone(), family, width),
        look_up(format!("ports{suffix}"), start, family, 0),
    ]
}

/// Family and width of its addresses in registers; the steps that load the destination.
fn destination(suffix: &str) -> (u8, u8, Vec<Expression>) {
    let (family, width, field) = match suffix {
        "4" => (NFPROTO_IPV4, 1, HeaderField::Destination4),
        _ => (NFPROTO_IPV6, 4, HeaderField::Destination6),
    };
    let mut steps = of_family(family);
    steps.push(Expression::Payload(field, 0));
    if family == NFPROTO_IPV6 {
        // There is no routing from the IPv6 loopback to elsewhere.
        steps.push(Expression::Differs(0, std::net::Ipv6Addr::LOCALHOST.octets().to_vec()));
    }
    (family, width, steps)
}

/// A rule that looks up what the registers before `width` hold, protocol and port, and rewrites the destination.
fn look_up(map: String, mut steps: Vec<Expression>, family: u8, width: u8) -> Rule {
    let address_width = if family == NFPROTO_IPV4 { 1 } else { 4 };
    steps.extend([
        Expression::Meta(Meta::Protocol, width),
        Expression::Payload(HeaderField::DestinationPort, width + 1),
        Expression::Load { map: map.clone(), key: 0, into: 0 },
        Expression::Meta(Meta::Mark, SPARE),
        Expression::SetBits { register: SPARE, bits: PUBLISHED },
        Expression::SetMark(SPARE),
        Expression::Dnat { family, address: 0, port: address_width },
    ]);
    Rule { comment: format!("published in {map}"), steps }
}

/// A rule that asks for the source of connections that were sent to a pod here.
fn to_pod(map: &'static str, family: u8, field: HeaderField) -> Rule {
    let mut steps = vec![
        Expression::ConntrackStatus(0),
        Expression::And { register: 0, mask: DESTINATION_NAT.to_ne_bytes().to_vec() },
        Expression::Differs(0, vec![0; 4]),
        Expression::Meta(Meta::Mark, 0),
        Expression::And { register: 0, mask: PUBLISHED.to_ne_bytes().to_vec() },
        Expression::Differs(0, vec![0; 4]),
    ];
    steps.extend(of_family(family));
    steps.push(Expression::Payload(field, 0));
    steps.push(Expression::Decide { map: map.to_owned(), key: 0 });
    Rule { comment: format!("sources on the way to {map}"), steps }
}

fn jump_to(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Jump(chain.to_owned()))
}

fn loopback() -> IpNet {
    IpNet::V4(ipnet::Ipv4Net::new_assert([127, 0, 0, 0].into(), 8))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

//! Who may send to which pod: tables of Berth's own.
//!
//! Table inet `berth_firewall`: packets to a pod that has a policy (`pods4`, `pods6`) go through the chain of its
//! policy and bridge. The chain `isolated_links` drops what comes from any bridge that has such pods.
//!
//! Table bridge `berth_firewall`: what goes from port to port of one bridge does not pass there; it is dropped here
//! when it is for an isolated pod.
//!
//! In both, [`claims`] is for addresses that several networks have.

use std::net::IpAddr;
use std::path::Path;

use proto::cni::CniError;

use super::conf::IngressPolicy;
use crate::net::NetError;
use crate::net::nft::{
    Chain, Element, Expression, Field, HeaderField, Hook, Map, Meta, OnDemand, Place, Rule, Table,
    TableFamily, Tables, Verdict,
};
use crate::net::socket::Socket;
use crate::owner::Owner;
use crate::plugin::claims::{self, Wanted};
use crate::plugin::masquerade::of_family;

const FORWARD: u32 = 2;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// What a pod is protected from: a policy, and the bridge that it is on.
#[derive(Debug, Clone)]
pub struct Protection<'a> {
    /// Who may send to it; not [`IngressPolicy::Open`].
    pub policy: IngressPolicy,
    /// Name of its bridge.
    pub bridge: String,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
}

/// Protects an owner's pod; `base` is where locks are.
///
/// # Errors
/// [`CniError`].
pub fn add(
    socket: &mut Socket,
    base: &Path,
    owner: &Owner,
    protection: &Protection<'_>,
) -> Result<(), CniError> {
    wanted(owner, protection).iter().try_for_each(|part| place(socket, base, part, Table::insert))
}

/// Makes lost rules of an owner's pod again.
///
/// # Errors
/// [`CniError`].
pub fn mend(
    socket: &mut Socket,
    base: &Path,
    owner: &Owner,
    protection: &Protection<'_>,
) -> Result<(), CniError> {
    for part in wanted(owner, protection) {
        if damage_of(socket, &part)?.is_some() {
            place(socket, base, &part, Table::mend)?;
        }
    }
    Ok(())
}

fn place(socket: &mut Socket, base: &Path, part: &Part, how: Place) -> Result<(), CniError> {
    let wanted = Wanted { alone: &[], shared: &part.elements, chains: &part.chains };
    Ok(claims::place(socket, base, &part.table, wanted, how)?)
}

/// Forgets whatever belongs to the owner.
///
/// # Errors
/// [`NetError`].
pub fn remove_of(socket: &mut Socket, base: &Path, owner: &Owner) -> Result<(), NetError> {
    let tables = Tables::read(socket)?;
    for table in [routed(), bridged()] {
        claims::remove_of(socket, base, (&tables, &table), owner)?;
    }
    Ok(())
}

/// Forgets whatever belongs to owners that `gone` names.
///
/// # Errors
/// [`NetError`].
pub fn remove(socket: &mut Socket, base: &Path, gone: &dyn Fn(&str) -> bool) -> Result<(), NetError> {
    for table in [routed(), bridged()] {
        claims::remove(socket, base, &table, gone)?;
    }
    Ok(())
}

/// What is missing, in words.
///
/// # Errors
/// [`NetError`].
pub fn damage(
    socket: &mut Socket,
    owner: &Owner,
    protection: &Protection<'_>,
) -> Result<Option<String>, NetError> {
    for part in wanted(owner, protection) {
        if let Some(damage) = damage_of(socket, &part)? {
            return Ok(Some(damage));
        }
    }
    Ok(None)
}

fn damage_of(socket: &mut Socket, part: &Part) -> Result<Option<String>, NetError> {
    let expected = claims::expected(socket, &part.table, &part.elements)?;
    part.table.damage(socket, &expected, &part.chains)
}

/// What a pod has in one table.
struct Part {
    table: Table,
    elements: Vec<(&'static str, Element)>,
    chains: Vec<OnDemand>,
}

fn wanted(owner: &Owner, protection: &Protection<'_>) -> Vec<Part> {
    let chain = into_bridge(protection);
    let elements = |chain: &str| -> Vec<(&'static str, Element)> {
        let element = |address: &IpAddr| match address {
            IpAddr::V4(v4) => ("pods4", Element::jump(v4.octets().to_vec(), chain, owner.tag())),
            IpAddr::V6(v6) => ("pods6", Element::jump(v6.octets().to_vec(), chain, owner.tag())),
        };
        protection.addresses.iter().map(element).collect()
    };
    let mut wanted = vec![Part { table: routed(), elements: elements(&chain.chain), chains: vec![chain] }];
    if protection.policy == IngressPolicy::Isolated {
        wanted.push(Part { table: bridged(), elements: elements("refused"), chains: Vec::new() });
    }
    wanted
}

/// The chain for what goes to a bridge's pods of one policy.
fn into_bridge(protection: &Protection<'_>) -> OnDemand {
    let bridge = &protection.bridge;
    let (word, own) = match protection.policy {
        IngressPolicy::Isolated => ("isolated", Verdict::Drop),
        IngressPolicy::Open | IngressPolicy::SameBridge => ("same-bridge", Verdict::Return),
    };
    let chain = format!("{word}_{}", identifier(bridge));
    let from = |comment: String, verdict: Verdict| Rule {
        comment,
        steps: vec![
            Expression::Meta(Meta::InputName, 0),
            Expression::Equal(0, link_name(bridge)),
            Expression::Verdict(verdict),
        ],
    };
    OnDemand {
        rules: vec![
            from(format!("{chain}: the same bridge"), own),
            Rule {
                comment: format!("{chain}: other bridges"),
                steps: vec![Expression::Verdict(Verdict::Jump("isolated_links".to_owned()))],
            },
        ],
        beside: Some(("isolated_links", from(format!("{chain}: to other bridges"), Verdict::Drop))),
        chain,
    }
}

/// A link's name in what tools accept as a chain's: other characters by their number.
fn identifier(name: &str) -> String {
    let part = |byte: u8| match byte {
        b'-' | b'.' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        other => format!("_{other:02x}"),
    };
    name.bytes().map(part).collect()
}

fn link_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn maps() -> Vec<Map> {
    vec![
        Map { name: "pods4", key: &[Field::Ipv4], data: &[Field::Verdict] },
        Map { name: "pods6", key: &[Field::Ipv6], data: &[Field::Verdict] },
        claims::CLAIMS,
    ]
}

fn forward() -> Chain {
    Chain { name: "forward".to_owned(), hook: Some(Hook { kind: "filter", number: FORWARD, priority: 0 }) }
}

/// Rules that look the destination up; `start` admits packets of one address family.
fn to_pods(start: [Vec<Expression>; 2]) -> Vec<Rule> {
    let fields = [("pods4", HeaderField::Destination4), ("pods6", HeaderField::Destination6)];
    let rule = |(mut steps, (map, field)): (Vec<Expression>, (&str, HeaderField))| {
        steps.extend([Expression::Payload(field, 0), Expression::Decide { map: map.to_owned(), key: 0 }]);
        Rule { comment: format!("to {map}"), steps }
    };
    start.into_iter().zip(fields).map(rule).collect()
}

/// The table for what the host routes.
pub fn routed() -> Table {
    Table {
        family: TableFamily::Inet,
        name: "berth_firewall",
        maps: maps(),
        chains: vec![
            (Chain { name: "isolated_links".to_owned(), hook: None }, Vec::new()),
            (forward(), to_pods([of_family(NFPROTO_IPV4), of_family(NFPROTO_IPV6)])),
        ],
    }
}

/// The table for what a bridge forwards.
pub fn bridged() -> Table {
    let of_type = |number: u16| {
        vec![Expression::Meta(Meta::EtherType, 0), Expression::Equal(0, number.to_be_bytes().to_vec())]
    };
    let refused = Rule { comment: "isolated".to_owned(), steps: vec![Expression::Verdict(Verdict::Drop)] };
    Table {
        family: TableFamily::Bridge,
        name: "berth_firewall",
        maps: maps(),
        chains: vec![
            (Chain { name: "refused".to_owned(), hook: None }, vec![refused]),
            (forward(), to_pods([of_type(0x0800), of_type(0x86dd)])),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_told_apart() {
        let name = |policy, bridge: &str| {
            into_bridge(&Protection { policy, bridge: bridge.into(), addresses: &[] }).chain
        };
        assert_eq!(name(IngressPolicy::Isolated, "cni0"), "isolated_cni0");
        assert_eq!(name(IngressPolicy::SameBridge, "cni-podman1.5"), "same-bridge_cni-podman1.5");
        assert_eq!(name(IngressPolicy::SameBridge, "a_b"), "same-bridge_a_5fb");
        assert_eq!(name(IngressPolicy::SameBridge, "a@b"), "same-bridge_a_40b");
    }
}

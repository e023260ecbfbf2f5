//! What the reference plugins leave where they made an attachment that ours are to check or to remove: they can be
//! replaced while pods run. Nothing here makes such a thing.
//!
//! Every rule of theirs says whose it is: chains of iptables are led to by rules with the comment `name: "<network>"
//! id: "<container>"`; rules of table inet `cni_plugins_masquerade` have `…, net: <network>, if: <interface>, id:
//! <container>`; rules of the tables `cni_hostport` have the container alone.

use proto::cni::{Attachment, NetworkName};

use crate::net::NetError;
use crate::net::nft::{self, Batch, FoundRule, TableFamily, TableId, Tables};
use crate::net::socket::Socket;
use crate::owner::Owner;

/// What rules are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trade {
    /// `ipMasq`.
    Masquerade,
    /// Published ports.
    Ports,
}

/// Whose a rule is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    network: Option<String>,
    container: String,
    ifname: Option<String>,
}

impl Trade {
    fn places(self) -> &'static [TableId<'static>] {
        const fn place(family: TableFamily, name: &'static str) -> TableId<'static> {
            TableId { family, name }
        }
        const IPTABLES4: TableId<'static> = place(TableFamily::Ip4, "nat");
        const IPTABLES6: TableId<'static> = place(TableFamily::Ip6, "nat");
        const MASQUERADE: TableId<'static> = place(TableFamily::Inet, "cni_plugins_masquerade");
        const PORTS4: TableId<'static> = place(TableFamily::Ip4, "cni_hostport");
        const PORTS6: TableId<'static> = place(TableFamily::Ip6, "cni_hostport");
        match self {
            Self::Masquerade => &[IPTABLES4, IPTABLES6, MASQUERADE],
            Self::Ports => &[IPTABLES4, IPTABLES6, PORTS4, PORTS6],
        }
    }

    /// Whose a rule in one of the places is, by the chain that it jumps to and its comment; `None` where it is not the
    /// reference plugins' or has another trade.
    fn trace(self, place: TableId<'_>, target: Option<&str>, comment: &str) -> Option<Trace> {
        match (self, place.name) {
            (_, "nat") => {
                let is_ports = target?.strip_prefix("CNI-")?.starts_with("DN-");
                if is_ports != (self == Self::Ports) {
                    return None;
                }
                let (_, rest) = comment.split_once("name: \"")?;
                let (network, rest) = rest.split_once("\" id: \"")?;
                let container = rest.trim_end_matches('"');
                Some(Trace { network: Some(network.into()), container: container.into(), ifname: None })
            }
            (Self::Masquerade, _) => {
                let (_, rest) = comment.split_once(", net: ")?;
                let (network, rest) = rest.split_once(", if: ")?;
                let (ifname, container) = rest.split_once(", id: ")?;
                Some(Trace {
                    network: Some(network.into()),
                    container: container.into(),
                    ifname: Some(ifname.into()),
                })
            }
            (Self::Ports, _) => {
                let named = !comment.is_empty();
                named.then(|| Trace { network: None, container: comment.to_owned(), ifname: None })
            }
        }
    }
}

impl Trace {
    /// Whether it is of the owner, as far as it says.
    pub fn is_of(&self, owner: &Owner) -> bool {
        let (network, container, ifname) = owner.parts();
        self.container == container
            && self.network.as_deref().is_none_or(|name| name == network)
            && self.ifname.as_deref().is_none_or(|name| name == ifname)
    }

    /// Whether it is of the network and of no valid attachment. One that names no network stays.
    pub fn is_stale(&self, network: &NetworkName, valid: &[Attachment]) -> bool {
        let is = |attachment: &Attachment| {
            attachment.container_id.as_str() == self.container
                && self.ifname.as_deref().is_none_or(|name| name == attachment.ifname.as_str())
        };
        self.network.as_deref() == Some(network.as_str()) && !valid.iter().any(is)
    }
}

/// How often a removal is tried again when others remove the same meanwhile.
const ATTEMPTS: usize = 16;

/// Removes every rule in one of `tables` whose trace `gone` names, with the chains that belong to it.
///
/// # Errors
/// [`NetError`].
pub fn forget(
    socket: &mut Socket,
    tables: &Tables,
    trade: Trade,
    gone: &dyn Fn(&Trace) -> bool,
) -> Result<(), NetError> {
    for place in present(tables, trade) {
        let mut attempts = 0..ATTEMPTS;
        while !forget_in(socket, trade, place, gone)? && attempts.next().is_some() {}
    }
    Ok(())
}

/// Whether all went at once; not where some of it went meanwhile, which refuses all.
fn forget_in(
    socket: &mut Socket,
    trade: Trade,
    place: TableId<'static>,
    gone: &dyn Fn(&Trace) -> bool,
) -> Result<bool, NetError> {
    let traced = traced(socket, trade, place)?;
    let going: Vec<&FoundRule> =
        traced.iter().filter(|(_, trace)| gone(trace)).map(|(rule, _)| rule).collect();
    let mut chains: Vec<String> = going.iter().filter_map(|rule| rule.jumps_to()).collect();
    chains.sort_unstable();
    chains.dedup();
    let mut batch = Batch::new(place);
    going.iter().for_each(|rule| batch.delete_rule(&rule.chain, rule.handle));
    for chain in &chains {
        batch.flush_chain(chain);
        batch.delete_chain(chain);
    }
    match batch.commit(socket, None) {
        Err(error) if error.is_missing() => Ok(false),
        outcome => outcome.map(|()| true),
    }
}

/// Whether the reference plugins have made anything of the kind for the owner.
///
/// # Errors
/// [`NetError`].
pub fn has_any(socket: &mut Socket, trade: Trade, owner: &Owner) -> Result<bool, NetError> {
    for place in present(&Tables::read(socket)?, trade) {
        if traced(socket, trade, place)?.iter().any(|(_, trace)| trace.is_of(owner)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The rules in a place that say whose they are.
fn traced(
    socket: &mut Socket,
    trade: Trade,
    place: TableId<'_>,
) -> Result<Vec<(FoundRule, Trace)>, NetError> {
    let traced = |rule: FoundRule| {
        let trace = trade.trace(place, rule.jumps_to().as_deref(), &rule.comment)?;
        Some((rule, trace))
    };
    Ok(nft::all_rules(socket, place)?.into_iter().filter_map(traced).collect())
}

/// The places that this host has: mostly none.
fn present(tables: &Tables, trade: Trade) -> Vec<TableId<'static>> {
    let is = |place: &&TableId<'_>| tables.has(place.family as u8, place.name);
    trade.places().iter().filter(is).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_say_whose_they_are() {
        let check = |trade: Trade, place: usize, target: &str, comment: &str, expect: Option<[&str; 3]>| {
            let target = (!target.is_empty()).then_some(target);
            let found = trade.trace(trade.places()[place], target, comment);
            let parts = found.map(|trace| {
                [trace.network.unwrap_or_default(), trace.container, trace.ifname.unwrap_or_default()]
            });
            assert_eq!(parts, expect.map(|parts| parts.map(str::to_owned)), "{comment}");
        };
        let (masquerade, ports) = (Trade::Masquerade, Trade::Ports);
        check(masquerade, 0, "CNI-0a1b", "name: \"n\" id: \"c\"", Some(["n", "c", ""]));
        check(masquerade, 1, "CNI-DN-0a1b", "dnat name: \"n\" id: \"c\"", None);
        check(masquerade, 0, "CNI-HOSTPORT-MASQ", "CNI portfwd requiring masquerade", None);
        check(masquerade, 0, "DOCKER", "name: \"n\" id: \"c\"", None);
        check(masquerade, 2, "", "1234-5678, net: n, if: eth0, id: c", Some(["n", "c", "eth0"]));
        check(ports, 0, "CNI-DN-0a1b", "dnat name: \"n\" id: \"c\"", Some(["n", "c", ""]));
        check(ports, 0, "CNI-0a1b", "name: \"n\" id: \"c\"", None);
        check(ports, 2, "", "c", Some(["", "c", ""]));
        check(ports, 2, "hostports", "", None);
    }

    #[test]
    fn only_the_own_network_is_collected() {
        let trace = |network: Option<&str>| Trace {
            network: network.map(str::to_owned),
            container: "c".to_owned(),
            ifname: None,
        };
        let network = "n".parse().unwrap();
        let valid = [Attachment { container_id: "c".parse().unwrap(), ifname: "eth0".parse().unwrap() }];
        assert!(trace(Some("n")).is_stale(&network, &[]));
        assert!(!trace(Some("n")).is_stale(&network, &valid));
        assert!(!trace(Some("m")).is_stale(&network, &[]));
        assert!(!trace(None).is_stale(&network, &[]));
    }
}

//! What the reference plugins leave where they made an attachment that ours are to check or to remove: they can be
//! replaced while pods run. Nothing here makes such a thing.
//!
//! Every rule of theirs says whose it is: chains of iptables are led to by rules with the comment `name: "<network>"
//! id: "<container>"`; rules of table inet `cni_plugins_masquerade` have `…, net: <network>, if: <interface>, id:
//! <container>`; rules of the tables `cni_hostport` have the container alone.

use proto::cni::{Attachment, NetworkName};

use crate::net::NetError;
use crate::net::nft::Tables;
use crate::net::nft::foreign::{self, ForeignRule, INET, IPV4, IPV6, Place};
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
    fn places(self) -> &'static [Place] {
        const IPTABLES4: Place = Place { family: IPV4, table: "nat" };
        const IPTABLES6: Place = Place { family: IPV6, table: "nat" };
        match self {
            Self::Masquerade => {
                &[IPTABLES4, IPTABLES6, Place { family: INET, table: "cni_plugins_masquerade" }]
            }
            Self::Ports => &[
                IPTABLES4,
                IPTABLES6,
                Place { family: IPV4, table: "cni_hostport" },
                Place { family: IPV6, table: "cni_hostport" },
            ],
        }
    }

    /// Whose a rule in one of the places is; `None` where it is not the reference plugins' or has another trade.
    fn trace(self, place: Place, rule: &ForeignRule) -> Option<Trace> {
        match (self, place.table) {
            (_, "nat") => {
                let is_ports = rule.target.as_deref()?.strip_prefix("CNI-")?.starts_with("DN-");
                if is_ports != (self == Self::Ports) {
                    return None;
                }
                let (_, rest) = rule.comment.split_once("name: \"")?;
                let (network, rest) = rest.split_once("\" id: \"")?;
                let container = rest.trim_end_matches('"');
                Some(Trace { network: Some(network.into()), container: container.into(), ifname: None })
            }
            (Self::Masquerade, _) => {
                let (_, rest) = rule.comment.split_once(", net: ")?;
                let (network, rest) = rest.split_once(", if: ")?;
                let (ifname, container) = rest.split_once(", id: ")?;
                Some(Trace {
                    network: Some(network.into()),
                    container: container.into(),
                    ifname: Some(ifname.into()),
                })
            }
            (Self::Ports, _) => {
                let named = !rule.comment.is_empty();
                named.then(|| Trace { network: None, container: rule.comment.clone(), ifname: None })
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
        let rules = foreign::rules(socket, place)?;
        let is_gone = |rule: &&ForeignRule| trade.trace(place, rule).is_some_and(|trace| gone(&trace));
        let going: Vec<ForeignRule> = rules.iter().filter(is_gone).cloned().collect();
        let mut chains: Vec<String> = going.iter().filter_map(|rule| rule.target.clone()).collect();
        chains.sort_unstable();
        chains.dedup();
        foreign::remove(socket, place, &going, &chains)?;
    }
    Ok(())
}

/// Whether the reference plugins have made anything of the kind for the owner.
///
/// # Errors
/// [`NetError`].
pub fn has_any(socket: &mut Socket, trade: Trade, owner: &Owner) -> Result<bool, NetError> {
    for place in present(&Tables::read(socket)?, trade) {
        let rules = foreign::rules(socket, place)?;
        if rules.iter().any(|rule| trade.trace(place, rule).is_some_and(|trace| trace.is_of(owner))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The places that this host has: mostly none.
fn present(tables: &Tables, trade: Trade) -> Vec<Place> {
    trade.places().iter().filter(|place| tables.has(place.family, place.table)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_say_whose_they_are() {
        let check = |trade: Trade, place: usize, target: &str, comment: &str, expect: Option<[&str; 3]>| {
            let rule = ForeignRule {
                chain: "X".to_owned(),
                handle: 1,
                comment: comment.to_owned(),
                target: (!target.is_empty()).then(|| target.to_owned()),
            };
            let found = trade.trace(trade.places()[place], &rule);
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

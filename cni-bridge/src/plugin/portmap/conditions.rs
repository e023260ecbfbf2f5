//! `conditionsV4` and `conditionsV6`: which packets to a published port lead to the pod.
//!
//! Written as words of `iptables`; understood are source, destination and input interface, each with or without `!`.
//! Ports under conditions have a table of their own, inet `berth_portmap_if`: the maps `when4` and `when6` lead from
//! protocol and port to the chain of the conditions, and that looks the port up as the other table does.

use std::net::IpAddr;

use ipnet::IpNet;
use proto::cni::{CniError, Request};

use super::rules;
use crate::net::nft::{
    Chain, Expression, Field, HeaderField, Map, Meta, OnDemand, Rule, Table, TableFamily, Verdict,
};
use crate::plugin::masquerade::matches;

/// All must hold; none for a family means every packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// For IPv4.
    pub v4: Vec<Condition>,
    /// For IPv6.
    pub v6: Vec<Condition>,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    holds: Holds,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Source(IpNet),
    Destination(IpNet),
    Input(String),
}

impl Conditions {
    /// Reads both keys.
    ///
    /// # Errors
    /// [`proto::cni::ErrorCode::UNSUPPORTED_FIELD`] for words that are not understood,
    /// [`proto::cni::ErrorCode::INVALID_NETWORK_CONFIG`], [`proto::cni::ErrorCode::DECODING_FAILURE`].
    pub fn parse(request: &Request) -> Result<Self, CniError> {
        Ok(Self { v4: list(request, "conditionsV4")?, v6: list(request, "conditionsV6")? })
    }

    /// Those of the family that the name of a map ends with.
    pub fn of_map(&self, map: &str) -> &[Condition] {
        if map.ends_with('4') { &self.v4 } else { &self.v6 }
    }
}

fn list(request: &Request, key: &str) -> Result<Vec<Condition>, CniError> {
    let words = request.conf.top().strings(key)?;
    let (mut conditions, mut holds, mut at) = (Vec::new(), Holds::Yes, 0);
    while let Some(word) = words.get(at) {
        let path = format!("{key}[{at}]");
        if word == "!" {
            (holds, at) = (Holds::No, at + 1);
            continue;
        }
        let value = words.get(at + 1);
        let value = || value.ok_or_else(|| CniError::config(&path, format!("nothing follows {word:?}")));
        let value_path = format!("{key}[{}]", at + 1);
        let network = || {
            let value = value()?;
            let network = value.parse::<IpNet>().or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
            let fits =
                network.ok().filter(|network: &IpNet| matches!(network, IpNet::V4(_)) == key.ends_with('4'));
            let problem = || format!("{value:?} is not a network of IPv{}", &key[key.len() - 1..]);
            fits.ok_or_else(|| CniError::config(&value_path, problem()))
        };
        let what = match word.as_str() {
            "-s" | "--source" | "--src" => What::Source(network()?),
            "-d" | "--destination" | "--dst" => What::Destination(network()?),
            "-i" | "--in-interface" => match value()? {
                name if name.ends_with('+') => {
                    return Err(CniError::unsupported(&value_path, format!("{name:?}")));
                }
                name if name.is_empty() || name.len() > 15 => {
                    return Err(CniError::config(&value_path, format!("{name:?} is not an interface name")));
                }
                name => What::Input(name.clone()),
            },
            other => return Err(CniError::unsupported(&path, format!("{other:?}"))),
        };
        conditions.push(Condition { holds, what });
        (holds, at) = (Holds::Yes, at + 2);
    }
    match holds {
        Holds::Yes => Ok(conditions),
        Holds::No => Err(CniError::config(key, "nothing follows \"!\"")),
    }
}

/// The chain that leads packets which fulfil `conditions` to the ports of the family that `map` ends with.
pub fn chain(conditions: &[Condition], map: &str) -> OnDemand {
    let chain = format!("when_{:016x}_{}", hash(conditions), &map[map.len() - 1..]);
    let mut rules: Vec<Rule> = conditions
        .iter()
        .enumerate()
        .map(|(number, condition)| Rule {
            comment: format!("{chain}: condition {number}"),
            steps: unless(condition),
        })
        .collect();
    rules.extend(
        rules::look_ups(&map[map.len() - 1..])
            .into_iter()
            .map(|rule| Rule { comment: format!("{chain}: {}", rule.comment), ..rule }),
    );
    OnDemand { chain, rules, beside: None }
}

/// Leaves the chain unless the condition is fulfilled.
fn unless(condition: &Condition) -> Vec<Expression> {
    let mut steps = match &condition.what {
        What::Source(network @ IpNet::V4(_)) => matches(network, HeaderField::Source4),
        What::Source(network) => matches(network, HeaderField::Source6),
        What::Destination(network @ IpNet::V4(_)) => matches(network, HeaderField::Destination4),
        What::Destination(network) => matches(network, HeaderField::Destination6),
        What::Input(name) => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            vec![Expression::Meta(Meta::InputName, 0), Expression::Equal(0, bytes)]
        }
    };
    if let (Holds::Yes, Some(Expression::Equal(register, bytes))) = (condition.holds, steps.last().cloned()) {
        steps.pop();
        steps.push(Expression::Differs(register, bytes));
    }
    steps.push(Expression::Verdict(Verdict::Return));
    steps
}

fn hash(conditions: &[Condition]) -> u64 {
    let text = format!("{conditions:?}");
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The table of ports under conditions.
pub fn table() -> Table {
    let other = rules::table();
    let is_of_ports = |map: &Map| ["ports", "addrs"].iter().any(|start| map.name.starts_with(start));
    let mut maps: Vec<Map> = other.maps.into_iter().filter(is_of_ports).collect();
    maps.push(Map { name: "when4", key: &[Field::Protocol, Field::Port], data: &[Field::Verdict] });
    maps.push(Map { name: "when6", key: &[Field::Protocol, Field::Port], data: &[Field::Verdict] });
    let hooks =
        other.chains.into_iter().filter(|(chain, _)| matches!(chain.name.as_str(), "prerouting" | "output"));
    let publish = Chain { name: "publish".to_owned(), hook: None };
    let mut chains = vec![(publish, rules::publish_when())];
    chains.extend(hooks);
    Table { family: TableFamily::Inet, name: "berth_portmap_if", maps, chains }
}

#[cfg(test)]
mod tests {
    use proto::cni::ErrorCode;
    use serde_json::{Value, json};

    use super::*;
    use crate::sample::request;

    fn parse(keys: Value) -> Result<Conditions, CniError> {
        Conditions::parse(&request("portmap", keys, "")?)
    }

    #[test]
    fn words_of_iptables_are_understood() {
        let found =
            parse(json!({"conditionsV4": ["!", "-s", "10.0.0.0/8", "-i", "eth0", "--dst", "192.0.2.1"],
            "conditionsV6": ["--source", "fd00::/8"]}))
            .unwrap();
        let condition = |holds, what| Condition { holds, what };
        let v4 = vec![
            condition(Holds::No, What::Source("10.0.0.0/8".parse().unwrap())),
            condition(Holds::Yes, What::Input("eth0".into())),
            condition(Holds::Yes, What::Destination("192.0.2.1/32".parse().unwrap())),
        ];
        let v6 = vec![condition(Holds::Yes, What::Source("fd00::/8".parse().unwrap()))];
        assert_eq!(found, Conditions { v4, v6 });
        assert_ne!(chain(&found.v4, "ports4").chain, chain(&found.v4[1..], "ports4").chain);
        assert_eq!(parse(json!({"conditionsV4": null, "conditionsV6": []})).unwrap(), Conditions::default());
    }

    #[test]
    fn bad_input_has_code_and_key() {
        let check = |key: &str, words: Value, code: ErrorCode, expect: &str| {
            let error = parse(json!({key: words})).unwrap_err();
            assert_eq!((error.code, error.to_string().as_str()), (code, expect));
        };
        let (invalid, decode) = (ErrorCode::INVALID_NETWORK_CONFIG, ErrorCode::DECODING_FAILURE);
        let unsupported = ErrorCode::UNSUPPORTED_FIELD;
        check("conditionsV4", json!(["-m", "set"]), unsupported, "conditionsV4[0]: \"-m\" is not supported");
        check(
            "conditionsV4",
            json!(["-i", "eth+"]),
            unsupported,
            "conditionsV4[1]: \"eth+\" is not supported",
        );
        check("conditionsV6", json!(["-s"]), invalid, "conditionsV6[0]: nothing follows \"-s\"");
        check("conditionsV6", json!(["!"]), invalid, "conditionsV6: nothing follows \"!\"");
        let family = "conditionsV6[1]: \"10.0.0.1\" is not a network of IPv6";
        check("conditionsV6", json!(["-d", "10.0.0.1"]), invalid, family);
        check("conditionsV4", json!(["-i", ""]), invalid, "conditionsV4[1]: \"\" is not an interface name");
        check("conditionsV4", json!("-i"), decode, "conditionsV4: expected a list, found a string");
        check("conditionsV4", json!([1]), decode, "conditionsV4[0]: expected a string, found a number");
    }
}

//! Whether a rule that the kernel tells of is the one that was wanted.
//!
//! The kernel tells more than it was given, and in its own words: a register by the older of two ways of counting, a
//! range's end that is its beginning, flags that are zero. Counters go up, and a comment that `iptables` keeps as a
//! match decides nothing; both are passed over.

use std::collections::BTreeMap;

use super::expression::Expression;
use super::wire::{Attributes, attribute, attributes, text};

/// Where an attribute is: its number, and those inside of it that lead to a value.
type At = [u16; 3];

/// One step, each value by where it is.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    name: String,
    values: BTreeMap<At, Vec<u8>>,
}

/// Whether the encoded list of steps `found` does what `wanted` does.
pub(super) fn are_alike(found: &[u8], wanted: &[Expression]) -> bool {
    let mut encoded = Attributes::default();
    for step in wanted {
        encoded.nest(1, |element| step.encode(element));
    }
    let (found, wanted) = (steps(found), steps(&encoded.into_bytes()));
    found.len() == wanted.len() && found.iter().zip(&wanted).all(|(found, wanted)| found.does(wanted))
}

fn steps(list: &[u8]) -> Vec<Step> {
    let step = |(_, step)| {
        let name = attribute(step, 1).map(text).unwrap_or_default();
        let data = attribute(step, 2).unwrap_or_default();
        let is_comment = name == "match" && attribute(data, 1).map(text).as_deref() == Some("comment");
        (name != "counter" && !is_comment).then(|| Step { values: values(&name, data), name })
    };
    attributes(list).filter_map(step).collect()
}

impl Step {
    fn does(&self, wanted: &Self) -> bool {
        let told = |(at, value): (&At, &Vec<u8>)| match wanted.values.get(at) {
            Some(expected) => value == expected,
            None => self.says_nothing(*at, value),
        };
        self.name == wanted.name
            && wanted.values.keys().all(|at| self.values.contains_key(at))
            && self.values.iter().all(told)
    }

    /// Whether what was not asked for is what the kernel takes for granted.
    fn says_nothing(&self, [kind, ..]: At, value: &[u8]) -> bool {
        /// That there is an address, and that there is a port.
        const NAT_HAS: u8 = 0x3;
        match (self.name.as_str(), kind) {
            // The end of a range, which has its beginning one before.
            ("nat", 4 | 6) => self.values.get(&[kind - 1, 0, 0]).is_some_and(|from| from == value),
            ("nat", 7) => matches!(value, [0, 0, 0, flags] if flags & !NAT_HAS == 0),
            _ => value.iter().all(|byte| *byte == 0),
        }
    }
}

fn values(name: &str, data: &[u8]) -> BTreeMap<At, Vec<u8>> {
    const VERDICT: u16 = 2;
    let mut values = BTreeMap::new();
    for (kind, value) in attributes(data) {
        if !is_data(name, kind) {
            values.insert([kind, 0, 0], plain(name, kind, value));
            continue;
        }
        for (inner, value) in attributes(value) {
            if (name, inner) == ("immediate", VERDICT) {
                values.extend(attributes(value).map(|(part, value)| ([kind, inner, part], value.to_vec())));
            } else {
                values.insert([kind, inner, 0], value.to_vec());
            }
        }
    }
    values
}

/// Whether an attribute holds a value or a verdict in attributes of its own.
fn is_data(name: &str, kind: u16) -> bool {
    matches!((name, kind), ("bitwise", 4 | 5) | ("cmp", 3) | ("immediate", 2))
}

/// The value; registers as they are counted here, in steps of 4 bytes from 8. The kernel counts those that it can in
/// steps of 16 bytes from 1.
fn plain(name: &str, kind: u16, value: &[u8]) -> Vec<u8> {
    let is_register = matches!(
        (name, kind),
        ("meta", 1 | 3)
            | ("payload" | "ct" | "fib" | "cmp" | "immediate", 1)
            | ("bitwise", 1 | 2)
            | ("lookup", 2 | 3)
            | ("nat", 3..=6)
    );
    match value.try_into().map(u32::from_be_bytes) {
        Ok(wide @ 1..=4) if is_register => (8 + 4 * (wide - 1)).to_be_bytes().to_vec(),
        _ => value.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nft::{HeaderField, Meta, Verdict};

    /// Fills a step's data.
    type Fill<'a> = &'a dyn Fn(&mut Attributes);

    fn list(steps: &[(&str, Fill<'_>)]) -> Vec<u8> {
        let mut list = Attributes::default();
        for (name, fill) in steps {
            list.nest(1, |step| {
                step.text(1, name).nest(2, |data| fill(data));
            });
        }
        list.into_bytes()
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let check = |wanted: &[Expression], fill: Fill<'_>, name: &str, expect: bool| {
            let counter = |data: &mut Attributes| {
                data.bytes(1, &7u64.to_be_bytes());
            };
            let comment = |data: &mut Attributes| {
                data.text(1, "comment");
            };
            let found = list(&[(name, fill), ("match", &comment), ("counter", &counter)]);
            assert_eq!(are_alike(&found, wanted), expect, "{wanted:?}");
        };
        let load = [Expression::Meta(Meta::Protocol, 0)];
        let meta = |key: u32, register: u32| {
            move |data: &mut Attributes| {
                data.number(2, key).number(1, register);
            }
        };
        check(&load, &meta(16, 1), "meta", true);
        check(&load, &meta(16, 8), "meta", true);
        check(&load, &meta(16, 2), "meta", false);
        check(&load, &meta(15, 1), "meta", false);
        check(&load, &meta(16, 1), "ct", false);
        check(&[load[0].clone(), load[0].clone()], &meta(16, 1), "meta", false);
        let nat = |to: u32, flags: u32| {
            move |data: &mut Attributes| {
                data.number(1, 1).number(2, 2).number(3, 1).number(4, to).number(5, 9).number(6, 9);
                data.number(7, flags);
            }
        };
        let dnat = [Expression::Dnat { family: 2, address: 0, port: 1 }];
        check(&dnat, &nat(1, 0), "nat", true);
        check(&dnat, &nat(1, 3), "nat", true);
        check(&dnat, &nat(2, 0), "nat", false);
        check(&dnat, &nat(1, 4), "nat", false);
        let verdict = |code: i32, chain: &'static str| {
            move |data: &mut Attributes| {
                data.number(1, 0).nest(2, |value| {
                    value.nest(2, |verdict| {
                        verdict.number(1, code as u32).text(2, chain);
                    });
                });
            }
        };
        let jump = [Expression::Verdict(Verdict::Jump("a".into()))];
        check(&jump, &verdict(-3, "a"), "immediate", true);
        check(&jump, &verdict(-4, "a"), "immediate", false);
        check(&jump, &verdict(-3, "b"), "immediate", false);
    }

    /// A rule is alike itself and nothing else, as it is sent.
    #[test]
    fn no_two_steps_are_alike() {
        let all = [
            Expression::Meta(Meta::Mark, 0),
            Expression::Payload(HeaderField::Source4, 0),
            Expression::ConntrackStatus(0),
            Expression::DestinationType(0),
            Expression::And { register: 0, mask: vec![255, 0, 0, 0] },
            Expression::And { register: 0, mask: vec![255, 255, 0, 0] },
            Expression::SetBits { register: 0, bits: 1 },
            Expression::SetMark(0),
            Expression::Equal(0, vec![1]),
            Expression::Equal(0, vec![2]),
            Expression::Differs(0, vec![1]),
            Expression::Load { map: "m".into(), key: 0, into: 0 },
            Expression::Decide { map: "m".into(), key: 0 },
            Expression::Verdict(Verdict::Drop),
            Expression::Verdict(Verdict::Accept),
            Expression::Masquerade,
            Expression::KnownConnections,
        ];
        for (at, one) in all.iter().enumerate() {
            let mut encoded = Attributes::default();
            encoded.nest(1, |element| one.encode(element));
            let encoded = encoded.into_bytes();
            for (other, wanted) in all.iter().enumerate() {
                assert_eq!(
                    are_alike(&encoded, std::slice::from_ref(wanted)),
                    at == other,
                    "{one:?} {wanted:?}"
                );
            }
        }
    }
}

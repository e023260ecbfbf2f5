//! Rules that other programs keep in tables of their own: read with what is needed to tell whose they are, and
//! removed by their handles. Rules that iptables made are read too, as long as it speaks nf_tables.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};

use super::batch::{TableFamily, TableId};
use super::query::chain_exists;
use super::wire::{Attributes, attribute, attributes, read_comment, text};
use crate::net::error::NetError;
use crate::net::socket::{Message, Socket};

/// NFPROTO_INET.
pub const INET: u8 = 1;
/// NFPROTO_IPV4.
pub const IPV4: u8 = 2;
/// NFPROTO_IPV6.
pub const IPV6: u8 = 10;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const DEL_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DEL_RULE: u16 = SUBSYSTEM << 8 | 8;

/// Another program's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// NFPROTO number.
    pub family: u8,
    /// Its name.
    pub table: &'static str,
}

/// A rule in such a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRule {
    /// The chain that it stands in.
    pub chain: String,
    /// Its number in the table.
    pub handle: u64,
    /// Its comment, nf_tables' own or that of iptables.
    pub comment: String,
    /// The chain that it sends packets to.
    pub target: Option<String>,
}

/// Family and name of every table.
///
/// # Errors
/// [`NetError`].
pub fn tables(socket: &mut Socket) -> Result<Vec<(u8, String)>, NetError> {
    let question = request("listing nf_tables tables".to_owned(), GET_TABLE, 0, Attributes::default());
    let answers = socket.ask(&Message { flags: NLM_F_DUMP, ..question })?;
    let table = |body: &[u8]| Some((*body.first()?, text(attribute(body.get(4..)?, 1)?)));
    Ok(answers.iter().filter_map(|answer| table(&answer.body)).collect())
}

/// The rules of a table; empty where it is not there.
///
/// # Errors
/// [`NetError`].
pub fn rules(socket: &mut Socket, place: Place) -> Result<Vec<ForeignRule>, NetError> {
    let mut body = Attributes::default();
    body.text(1, place.table);
    let what = format!("listing the rules of nf_tables table {}", place.table);
    let question = request(what, GET_RULE, place.family, body);
    let answers = match socket.ask(&Message { flags: NLM_F_DUMP, ..question }) {
        Ok(answers) => answers,
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // Kernels without filtering list every table.
    let own = |body: &[u8]| {
        body.first() == Some(&place.family)
            && body.get(4..).and_then(|body| attribute(body, 1)).map(text).as_deref() == Some(place.table)
    };
    let bodies = answers.iter().map(|answer| &answer.body[..]).filter(|body| own(body));
    Ok(bodies.filter_map(|body| read_rule(body.get(4..)?)).collect())
}

/// How often a removal is tried again when others remove the same meanwhile.
const ATTEMPTS: usize = 16;

/// Removes rules, and `chains` with all that is in them. What is gone already is content.
///
/// # Errors
/// [`NetError`].
pub fn remove(
    socket: &mut Socket,
    place: Place,
    going: &[ForeignRule],
    chains: &[String],
) -> Result<(), NetError> {
    let (mut going, mut chains) = (going.to_vec(), chains.to_vec());
    for _ in 0..ATTEMPTS {
        match remove_at_once(socket, place, &going, &chains) {
            // One that is gone refuses all: again with what is left.
            Err(error) if error.is_missing() => {
                let found = rules(socket, place)?;
                going.retain(|rule| found.iter().any(|other| other.handle == rule.handle));
                let mut left = Vec::new();
                for chain in chains {
                    let id = TableId { family: family_of(place), name: place.table };
                    if chain_exists(socket, id, &chain)? {
                        left.push(chain);
                    }
                }
                chains = left;
            }
            outcome => return outcome,
        }
    }
    remove_at_once(socket, place, &going, &chains)
}

fn family_of(place: Place) -> TableFamily {
    match place.family {
        IPV4 => TableFamily::Ip4,
        IPV6 => TableFamily::Ip6,
        _ => TableFamily::Inet,
    }
}

fn remove_at_once(
    socket: &mut Socket,
    place: Place,
    rules: &[ForeignRule],
    chains: &[String],
) -> Result<(), NetError> {
    let mut changes = Vec::new();
    let change = |kind: u16, body: Attributes| {
        request(format!("changing nf_tables table {}", place.table), kind, place.family, body)
    };
    for rule in rules {
        let mut body = Attributes::default();
        body.text(1, place.table).text(2, &rule.chain).bytes(3, &rule.handle.to_be_bytes());
        changes.push(change(DEL_RULE, body));
    }
    for chain in chains {
        let mut content = Attributes::default();
        content.text(1, place.table).text(2, chain);
        changes.push(change(DEL_RULE, content));
        let mut body = Attributes::default();
        body.text(1, place.table).text(3, chain);
        changes.push(change(DEL_CHAIN, body));
    }
    let Some(last) = changes.last_mut() else { return Ok(()) };
    last.flags = NLM_F_ACK;
    let at = changes.len();
    let bracket = |kind: u16| Message {
        what: format!("changing nf_tables table {}", place.table),
        kind,
        flags: 0,
        body: vec![0, 0, 0, SUBSYSTEM as u8],
        tolerated: None,
    };
    let mut messages = vec![bracket(BATCH_BEGIN)];
    messages.extend(changes);
    messages.push(bracket(BATCH_END));
    socket.transact(&messages, at)
}

fn request(what: String, kind: u16, family: u8, attributes: Attributes) -> Message {
    let mut body = vec![family, 0, 0, 0];
    body.extend(attributes.into_bytes());
    Message { what, kind, flags: 0, body, tolerated: None }
}

fn read_rule(body: &[u8]) -> Option<ForeignRule> {
    let handle = u64::from_be_bytes(attribute(body, 3)?.try_into().ok()?);
    let mut rule = ForeignRule {
        chain: text(attribute(body, 2)?),
        handle,
        comment: attribute(body, 7).and_then(read_comment).unwrap_or_default(),
        target: None,
    };
    let steps = attribute(body, 4).unwrap_or_default();
    for (_, step) in attributes(steps) {
        let (Some(name), Some(data)) = (attribute(step, 1), attribute(step, 2)) else { continue };
        match text(name).as_str() {
            // iptables' comments are a match that always matches.
            "match" if attribute(data, 1).map(text).as_deref() == Some("comment") => {
                let told = attribute(data, 3).unwrap_or_default();
                let end = told.iter().position(|byte| *byte == 0).unwrap_or(told.len());
                rule.comment = String::from_utf8_lossy(&told[..end]).into_owned();
            }
            "immediate" => {
                let verdict = attribute(data, 2).and_then(|data| attribute(data, 2));
                rule.target = verdict.and_then(|verdict| attribute(verdict, 2)).map(text).or(rule.target);
            }
            _ => {}
        }
    }
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_iptables_is_read() {
        let mut body = Attributes::default();
        body.text(1, "nat").text(2, "POSTROUTING").bytes(3, &7u64.to_be_bytes());
        body.nest(4, |list| {
            list.nest(1, |step| {
                step.text(1, "match").nest(2, |data| {
                    data.text(1, "comment").bytes(3, b"name: \"n\" id: \"c\"\0\0\0");
                });
            });
            list.nest(1, |step| {
                step.text(1, "immediate").nest(2, |data| {
                    data.nest(2, |data| {
                        data.nest(2, |verdict| {
                            verdict.text(2, "CNI-1");
                        });
                    });
                });
            });
        });
        let rule = read_rule(&body.into_bytes()).unwrap();
        let expect = ForeignRule {
            chain: "POSTROUTING".to_owned(),
            handle: 7,
            comment: "name: \"n\" id: \"c\"".to_owned(),
            target: Some("CNI-1".to_owned()),
        };
        assert_eq!(rule, expect);
    }
}

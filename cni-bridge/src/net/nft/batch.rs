//! An nf_tables transaction: everything in it happens, or nothing.

use std::fmt;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};

use super::expression::{Expression, Verdict};
use super::register::{Note, OWNED};
use super::wire::{Attributes, comment};
use crate::net::error::NetError;
use crate::net::socket::{Message, Socket};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// Message numbers of nf_tables.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    NewElement = 12,
    GetElement = 13,
    DelElement = 14,
    GetGeneration = 16,
}

/// What packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFamily {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4; the family of `iptables`' tables.
    Ip4 = 2,
    /// Frames between the ports of a bridge.
    Bridge = 7,
    /// IPv6; the family of `ip6tables`' tables.
    Ip6 = 10,
}

/// A table's family and name. A name alone is one of family inet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableId<'a> {
    /// TableFamily.
    pub family: TableFamily,
    /// Name.
    pub name: &'a str,
}

impl<'a> From<&'a str> for TableId<'a> {
    fn from(name: &'a str) -> Self {
        Self { family: TableFamily::Inet, name }
    }
}

impl fmt::Display for TableId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Changes to one table.
#[derive(Debug, Clone)]
pub struct Batch {
    table: TableId<'static>,
    messages: Vec<Message>,
    sets: u32,
}

/// A named map from keys to values or verdicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Name.
    pub name: &'static str,
    /// The key's parts.
    pub key: &'static [Field],
    /// The parts of what is found.
    pub data: &'static [Field],
}

/// A part of a key or value; each starts on a 4-byte boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// IPv4 address.
    Ipv4,
    /// IPv6 address.
    Ipv6,
    /// Transport protocol.
    Protocol,
    /// Port.
    Port,
    /// Any number of 32 bits.
    Number,
    /// Name of a link, padded to 16 bytes.
    LinkName,
    /// What becomes of the packet.
    Verdict,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Where the kernel calls it; only jumped to where absent.
    pub hook: Option<Hook>,
}

/// Where the kernel calls a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// NF_INET_PRE_ROUTING 0, LOCAL_IN 1, FORWARD 2, LOCAL_OUT 3, POST_ROUTING 4.
    pub number: u32,
    /// Lower comes first.
    pub priority: i32,
}

/// A rule with the comment it is recognised by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Shown by tools; unique in its table.
    pub comment: String,
    /// The steps.
    pub steps: Vec<Expression>,
}

/// An entry of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The key's bytes, each part padded to 4 bytes.
    pub key: Vec<u8>,
    /// What is found.
    pub data: Target,
    /// Owner tag.
    pub owner: String,
}

/// What a map's entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Bytes, each part padded to 4 bytes.
    Value(Vec<u8>),
    /// A jump to a chain; without a name any other verdict, which nothing here makes.
    Jump(String),
}

impl Batch {
    /// An empty transaction on `table`.
    pub fn new(table: impl Into<TableId<'static>>) -> Self {
        Self { table: table.into(), messages: Vec::new(), sets: 0 }
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many changes it holds: the position of the next one.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Makes the table if it is not there, and wakes it up if it is dormant.
    pub fn add_table(&mut self) {
        let mut body = Attributes::default();
        body.text(1, self.table.name).number(2, 0);
        self.push("creating nf_tables table".to_owned(), Kind::NewTable, NLM_F_CREATE, body);
    }

    /// Removes the table with all that is in it.
    pub fn delete_table(&mut self) {
        let mut body = Attributes::default();
        body.text(1, self.table.name);
        self.push("removing nf_tables table".to_owned(), Kind::DelTable, 0, body);
    }

    /// Makes a map if it is not there.
    pub fn add_map(&mut self, map: &Map) {
        const IS_MAP: u32 = 0x8;
        self.sets += 1;
        let mut body = Attributes::default();
        body.text(1, self.table.name).text(2, map.name).number(3, IS_MAP);
        body.number(4, datatype(map.key)).number(5, length(map.key));
        body.number(6, datatype(map.data)).number(7, length(map.data)).number(10, self.sets);
        self.push(format!("creating map {} of nf_tables table", map.name), Kind::NewSet, NLM_F_CREATE, body);
    }

    /// Makes a chain; with NLM_F_EXCL in `flags` it must be new.
    pub fn add_chain(&mut self, chain: &Chain, flags: u16) {
        let mut body = Attributes::default();
        body.text(1, self.table.name).text(3, &chain.name);
        if let Some(hook) = chain.hook {
            body.nest(4, |inner| {
                inner.number(1, hook.number).number(2, hook.priority as u32);
            });
            body.text(7, hook.kind);
        }
        let what = format!("creating chain {} of nf_tables table", chain.name);
        self.push(what, Kind::NewChain, NLM_F_CREATE | flags, body);
    }

    /// Removes every rule of a chain.
    pub fn flush_chain(&mut self, chain: &str) {
        let mut body = Attributes::default();
        body.text(1, self.table.name).text(2, chain);
        self.push(format!("emptying chain {chain} of nf_tables table"), Kind::DelRule, 0, body);
    }

    /// Removes a chain, which must be empty and not jumped to.
    pub fn delete_chain(&mut self, chain: &str) {
        let mut body = Attributes::default();
        body.text(1, self.table.name).text(3, chain);
        self.push(format!("removing chain {chain} of nf_tables table"), Kind::DelChain, 0, body);
    }

    /// Removes the rule of a chain that has the number `handle`.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) {
        let mut body = Attributes::default();
        body.text(1, self.table.name).text(2, chain).bytes(3, &handle.to_be_bytes());
        self.push(format!("removing a rule of chain {chain} of nf_tables table"), Kind::DelRule, 0, body);
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule) {
        self.place_rule(chain, rule, NLM_F_APPEND);
    }

    /// Adds a rule before all others of a chain.
    pub fn insert_rule(&mut self, chain: &str, rule: &Rule) {
        self.place_rule(chain, rule, 0);
    }

    fn place_rule(&mut self, chain: &str, rule: &Rule, place: u16) {
        let mut body = Attributes::default();
        body.text(1, self.table.name).text(2, chain);
        body.nest(4, |list| {
            for step in &rule.steps {
                list.nest(1, |element| step.encode(element));
            }
        });
        body.bytes(7, &comment(&rule.comment));
        let what = format!("adding rule {:?} to chain {chain} of nf_tables table", rule.comment);
        self.push(what, Kind::NewRule, NLM_F_CREATE | place, body);
    }

    /// Adds an element whose key must be free.
    pub fn add_element(&mut self, map: &str, element: &Element) {
        self.place_element(map, element, &comment(&element.owner));
    }

    /// Adds a note, whose key must be free.
    pub(super) fn add_note(&mut self, note: &Note) {
        self.place_element(OWNED.name, &note.element, &note.user_data);
    }

    fn place_element(&mut self, map: &str, element: &Element, user_data: &[u8]) {
        let mut body = Attributes::default();
        body.text(1, self.table.name).text(2, map);
        body.nest(3, |list| {
            list.nest(1, |entry| {
                entry.nest(1, |key| {
                    key.bytes(1, &element.key);
                });
                entry.nest(2, |data| match &element.data {
                    Target::Value(value) => {
                        data.bytes(1, value);
                    }
                    Target::Jump(chain) => {
                        data.nest(2, |inner| Verdict::Jump(chain.clone()).encode(inner));
                    }
                });
                entry.bytes(6, user_data);
            });
        });
        let what = format!("adding an element to map {map} of nf_tables table");
        self.push(what, Kind::NewElement, NLM_F_CREATE | NLM_F_EXCL, body);
    }

    /// Removes the element with `key`.
    pub fn delete_element(&mut self, map: &str, key: &[u8]) {
        let body = element_key(self.table.name, map, key);
        let what = format!("removing an element of map {map} of nf_tables table");
        self.push(what, Kind::DelElement, 0, body);
    }

    /// Commits. With `generation`, only if nothing in nf_tables changed since it was read (else ERESTART).
    ///
    /// # Errors
    /// [`NetError::Refused`] with the position of the first refused change.
    pub fn commit(self, socket: &mut Socket, generation: Option<u32>) -> Result<(), NetError> {
        let Some(last) = self.messages.len().checked_sub(1) else { return Ok(()) };
        let mut begin = Attributes::default();
        if let Some(generation) = generation {
            begin.number(1, generation);
        }
        let what = format!("changing nf_tables table {}", self.table);
        let bracket = |kind: u16, attributes: Attributes| Message {
            what: what.clone(),
            kind,
            flags: 0,
            body: with_header(0, SUBSYSTEM, attributes),
            tolerated: None,
        };
        let mut messages = vec![bracket(BATCH_BEGIN, begin)];
        messages.extend(self.messages);
        messages[last + 1].flags |= NLM_F_ACK;
        messages.push(bracket(BATCH_END, Attributes::default()));
        socket.transact(&messages, last + 1).map_err(|error| match error {
            NetError::Refused { what, position, refusal } => {
                NetError::Refused { what, position: position.saturating_sub(1), refusal }
            }
            other => other,
        })
    }

    fn push(&mut self, what: String, kind: Kind, flags: u16, body: Attributes) {
        let what = format!("{what} {}", self.table);
        self.messages.push(message(what, (self.table.family, kind), flags, body));
    }
}

/// An nf_tables message.
pub(super) fn message(
    what: String,
    (family, kind): (TableFamily, Kind),
    flags: u16,
    body: Attributes,
) -> Message {
    Message {
        what,
        kind: SUBSYSTEM << 8 | kind as u16,
        flags,
        body: with_header(family as u8, 0, body),
        tolerated: None,
    }
}

/// The attributes that name one element by its key.
pub(super) fn element_key(table: &str, map: &str, key: &[u8]) -> Attributes {
    let mut body = Attributes::default();
    body.text(1, table).text(2, map);
    body.nest(3, |list| {
        list.nest(1, |entry| {
            entry.nest(1, |data| {
                data.bytes(1, key);
            });
        });
    });
    body
}

fn with_header(family: u8, resource: u16, attributes: Attributes) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    let mut body = vec![family, 0, high, low];
    body.extend(attributes.into_bytes());
    body
}

/// The number by which tools know how to show a key: 6 bits for each part.
fn datatype(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |number, field| match field {
        Field::Verdict => 0xffff_ff00,
        Field::Ipv4 => number << 6 | 7,
        Field::Ipv6 => number << 6 | 8,
        Field::Protocol => number << 6 | 12,
        Field::Port => number << 6 | 13,
        Field::Number => number << 6 | 19,
        Field::LinkName => number << 6 | 41,
    })
}

fn length(fields: &[Field]) -> u32 {
    let of = |field: &Field| match field {
        Field::Ipv4 | Field::Number => 4,
        Field::Ipv6 | Field::LinkName => 16,
        Field::Protocol => 1,
        Field::Port => 2,
        Field::Verdict => 0,
    };
    match fields {
        [single] => of(single),
        parts => parts.iter().map(|field| of(field).next_multiple_of(4)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_padded_and_typed() {
        let check = |fields: &[Field], kind: u32, bytes: u32| {
            assert_eq!((datatype(fields), length(fields)), (kind, bytes), "{fields:?}");
        };
        check(&[Field::Ipv4], 7, 4);
        check(&[Field::Protocol, Field::Port], 12 << 6 | 13, 8);
        check(&[Field::Ipv6, Field::Protocol, Field::Port], (8 << 6 | 12) << 6 | 13, 24);
        check(&[Field::Verdict], 0xffff_ff00, 0);
    }

    #[test]
    fn an_element_carries_its_owner() {
        let mut batch = Batch::new("t");
        let element = Element {
            key: vec![10, 0, 0, 2],
            data: Target::Value(vec![6, 0, 0, 0]),
            owner: "n/c/eth0".to_owned(),
        };
        batch.add_element("m", &element);
        let message = &batch.messages[0];
        assert_eq!(message.kind, 0x0a0c);
        assert_eq!(message.flags, NLM_F_CREATE | NLM_F_EXCL);
        let hex: String = message.body.iter().map(|byte| format!("{byte:02x}")).collect();
        let expect = "01000000\
            0600010074000000060002006d000000\
            300003802c0001800c000180080001000a0000020c0002800800010006000000\
            0f00060000096e2f632f6574683000";
        // The last attribute is padded to 4 bytes.
        assert_eq!(hex, format!("{expect}00"));
    }
}

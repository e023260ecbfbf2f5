//! Reading nf_tables.

use netlink_packet_core::NLM_F_DUMP;

use super::alike::are_alike;
use super::batch::{Element, Kind, TableFamily, TableId, Target, element_key, message};
use super::expression::{Expression, JUMP};
use super::wire::{Attributes, attribute, attributes, read_comment, text};
use crate::net::error::NetError;
use crate::net::socket::{Answer, Message, Socket};

/// What [`generation`] is doing, in its errors.
pub const GENERATION: &str = "reading the generation of nf_tables";
/// What [`Tables::read`] is doing, in its errors.
pub const TABLES: &str = "listing nf_tables tables";

/// The generation that every committed batch raises.
///
/// # Errors
/// [`NetError`]; [`NetError::is_without_nf_tables`] where the kernel has none.
pub fn generation(socket: &mut Socket) -> Result<u32, NetError> {
    let question =
        message(GENERATION.to_owned(), (TableFamily::Inet, Kind::GetGeneration), 0, Attributes::default());
    let answers = socket.ask(&question)?;
    let number = answers.first().and_then(|answer| attribute(answer.body.get(4..)?, 1));
    match number.and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => Ok(u32::from_be_bytes(bytes)),
        None => Err(NetError::Answer { what: question.what, problem: "no generation in it".to_owned() }),
    }
}

/// Whether a chain is there.
///
/// # Errors
/// [`NetError`].
pub fn chain_exists<'a>(
    socket: &mut Socket,
    table: impl Into<TableId<'a>>,
    chain: &str,
) -> Result<bool, NetError> {
    let table = table.into();
    let mut body = Attributes::default();
    body.text(1, table.name).text(3, chain);
    let what = format!("looking up chain {chain} of nf_tables table {table}");
    match socket.ask(&message(what, (table.family, Kind::GetChain), 0, body)) {
        Ok(_) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many rules a chain has, and jumps to it there are, together; `None` where it is not there.
///
/// # Errors
/// [`NetError`].
pub(super) fn uses_of(socket: &mut Socket, table: TableId<'_>, chain: &str) -> Result<Option<u32>, NetError> {
    let mut body = Attributes::default();
    body.text(1, table.name).text(3, chain);
    let what = format!("looking up chain {chain} of nf_tables table {table}");
    let answers = match socket.ask(&message(what, (table.family, Kind::GetChain), 0, body)) {
        Ok(answers) => answers,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error),
    };
    let uses = answers.first().and_then(|answer| attribute(answer.body.get(4..)?, 6)?.try_into().ok());
    Ok(uses.map(u32::from_be_bytes))
}

/// All elements of a map; `None` where table or map are not there.
///
/// # Errors
/// [`NetError`].
pub fn elements<'a>(
    socket: &mut Socket,
    table: impl Into<TableId<'a>>,
    map: &str,
) -> Result<Option<Vec<Element>>, NetError> {
    let table = table.into();
    let mut body = Attributes::default();
    body.text(1, table.name).text(2, map);
    let what = format!("listing map {map} of nf_tables table {table}");
    match socket.ask(&message(what, (table.family, Kind::GetElement), NLM_F_DUMP, body)) {
        Ok(answers) => Ok(Some(answers.iter().flat_map(|answer| read_elements(&answer.body)).collect())),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The element with `key`; `None` where it, its map or its table are not there.
///
/// # Errors
/// [`NetError`].
pub fn element<'a>(
    socket: &mut Socket,
    table: impl Into<TableId<'a>>,
    map: &str,
    key: &[u8],
) -> Result<Option<Element>, NetError> {
    let found = elements_at(socket, table.into(), &[(map, key.to_vec())])?;
    Ok(found.into_iter().flatten().next().map(|found| found.element))
}

/// An element as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundElement {
    /// The element.
    pub element: Element,
    /// All of its user data.
    pub user_data: Vec<u8>,
}

/// The elements with these maps and keys, asked for at once; `None` for what is not there.
///
/// # Errors
/// [`NetError`].
pub(super) fn elements_at(
    socket: &mut Socket,
    table: TableId<'_>,
    places: &[(&str, Vec<u8>)],
) -> Result<Vec<Option<FoundElement>>, NetError> {
    let question = |(map, key): &(&str, Vec<u8>)| {
        let what = format!("looking up an element of map {map} of nf_tables table {table}");
        message(what, (table.family, Kind::GetElement), 0, element_key(table.name, map, key))
    };
    let questions: Vec<Message> = places.iter().map(question).collect();
    let found = |answer: Answer| {
        let (_, entry) = attributes(element_list(&answer.body)).next()?;
        let user_data = attribute(entry, 6).unwrap_or_default().to_vec();
        Some(FoundElement { element: read_element(entry)?, user_data })
    };
    Ok(socket.ask_each(&questions)?.into_iter().map(|answer| answer.and_then(found)).collect())
}

/// How many elements a map has; `None` where the kernel does not say, or map or table are not there.
///
/// # Errors
/// [`NetError`].
pub(super) fn count(socket: &mut Socket, table: TableId<'_>, map: &str) -> Result<Option<u32>, NetError> {
    const COUNT: u16 = 20;
    let mut body = Attributes::default();
    body.text(1, table.name).text(2, map);
    let what = format!("looking up map {map} of nf_tables table {table}");
    let answers = socket.ask_each(&[message(what, (table.family, Kind::GetSet), 0, body)])?;
    let count = |answer: Answer| attribute(answer.body.get(4..)?, COUNT)?.try_into().ok();
    Ok(answers.into_iter().flatten().find_map(count).map(u32::from_be_bytes))
}

/// Which tables there are.
#[derive(Debug, Clone, Default)]
pub struct Tables(Vec<(u8, String)>);

impl Tables {
    /// All of this network namespace.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn read(socket: &mut Socket) -> Result<Self, NetError> {
        let mut question = message(
            TABLES.to_owned(),
            (TableFamily::Inet, Kind::GetTable),
            NLM_F_DUMP,
            Attributes::default(),
        );
        // Of every family.
        question.body[0] = 0;
        let table = |body: &[u8]| Some((*body.first()?, text(attribute(body.get(4..)?, 1)?)));
        Ok(Self(socket.ask(&question)?.iter().filter_map(|answer| table(&answer.body)).collect()))
    }

    /// Whether there is one of that family, an NFPROTO number, and name.
    pub fn has(&self, family: u8, name: &str) -> bool {
        self.0.iter().any(|(of, called)| *of == family && called == name)
    }
}

/// A rule as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRule {
    /// Its chain.
    pub chain: String,
    /// Its number, by which it is removed.
    pub handle: u64,
    /// Its comment, as `nft` and `iptables` show it; may be empty.
    pub comment: String,
    /// The list of its steps, encoded.
    steps: Vec<u8>,
}

impl FoundRule {
    /// The chain that it jumps to.
    pub fn jumps_to(&self) -> Option<String> {
        self.data_of("immediate").find_map(|data| {
            let verdict = attribute(attribute(data, 2)?, 2)?;
            attribute(verdict, 2).map(text)
        })
    }

    /// Whether one of its steps compares with `bytes`.
    pub fn compares(&self, bytes: &[u8]) -> bool {
        let value = |data| attribute(attribute(data, 3)?, 1);
        self.data_of("cmp").any(|data| value(data) == Some(bytes))
    }

    /// Whether it does what `steps` do.
    pub fn does(&self, steps: &[Expression]) -> bool {
        are_alike(&self.steps, steps)
    }

    /// The data of the steps called `name`.
    fn data_of(&self, name: &'static str) -> impl Iterator<Item = &[u8]> {
        let steps = attributes(&self.steps).map(|(_, step)| step);
        let named = steps.filter(move |step| attribute(step, 1).map(text).as_deref() == Some(name));
        named.filter_map(|step| attribute(step, 2))
    }

    /// A comment that `iptables` keeps as a match of its own.
    fn match_comment(&self) -> Option<String> {
        let own =
            self.data_of("match").find(|data| attribute(data, 1).map(text).as_deref() == Some("comment"));
        let bytes = attribute(own?, 3)?;
        Some(text(bytes.split(|byte| *byte == 0).next()?))
    }
}

/// The rules of one chain in their order; empty where it is not there.
///
/// # Errors
/// [`NetError`].
pub fn rules_of(socket: &mut Socket, table: TableId<'_>, chain: &str) -> Result<Vec<FoundRule>, NetError> {
    list_rules(socket, table, Some(chain))
}

/// The rules of a table, anybody's; empty where it is not there.
///
/// # Errors
/// [`NetError`].
pub fn all_rules(socket: &mut Socket, table: TableId<'_>) -> Result<Vec<FoundRule>, NetError> {
    list_rules(socket, table, None)
}

fn list_rules(
    socket: &mut Socket,
    table: TableId<'_>,
    chain: Option<&str>,
) -> Result<Vec<FoundRule>, NetError> {
    let mut body = Attributes::default();
    body.text(1, table.name);
    if let Some(chain) = chain {
        body.text(2, chain);
    }
    let what = format!("listing the rules of nf_tables table {table}");
    let answers = match socket.ask(&message(what, (table.family, Kind::GetRule), NLM_F_DUMP, body)) {
        Ok(answers) => answers,
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // Kernels without filtering list every table.
    let of_family = answers.iter().filter(|answer| answer.body.first() == Some(&(table.family as u8)));
    let found = of_family.filter_map(|answer| read_rule(answer.body.get(4..)?));
    let wanted =
        |(of, rule): &(String, FoundRule)| of == table.name && chain.is_none_or(|chain| rule.chain == chain);
    Ok(found.filter(wanted).map(|(_, rule)| rule).collect())
}

/// The name of its table, and the rule.
fn read_rule(body: &[u8]) -> Option<(String, FoundRule)> {
    let mut rule = FoundRule {
        chain: text(attribute(body, 2)?),
        handle: u64::from_be_bytes(attribute(body, 3)?.try_into().ok()?),
        comment: attribute(body, 7).and_then(read_comment).unwrap_or_default(),
        steps: attribute(body, 4).unwrap_or_default().to_vec(),
    };
    if rule.comment.is_empty() {
        rule.comment = rule.match_comment().unwrap_or_default();
    }
    Some((text(attribute(body, 1)?), rule))
}

fn read_elements(body: &[u8]) -> Vec<Element> {
    attributes(element_list(body)).filter_map(|(_, entry)| read_element(entry)).collect()
}

fn element_list(body: &[u8]) -> &[u8] {
    body.get(4..).and_then(|body| attribute(body, 3)).unwrap_or_default()
}

fn read_element(entry: &[u8]) -> Option<Element> {
    let key = attribute(attribute(entry, 1)?, 1)?.to_vec();
    let owner = attribute(entry, 6).and_then(read_comment).unwrap_or_default();
    let data = attribute(entry, 2)?;
    let data = match (attribute(data, 1), attribute(data, 2)) {
        (Some(value), _) => Target::Value(value.to_vec()),
        (None, Some(verdict)) if attribute(verdict, 1) == Some(&JUMP.to_be_bytes()) => {
            Target::Jump(attribute(verdict, 2).map(text).unwrap_or_default())
        }
        (None, Some(_)) => Target::Jump(String::new()),
        (None, None) => return None,
    };
    Some(Element { key, data, owner })
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
        let (table, rule) = read_rule(&body.into_bytes()).unwrap();
        assert_eq!((table.as_str(), rule.chain.as_str(), rule.handle), ("nat", "POSTROUTING", 7));
        assert_eq!(rule.comment, "name: \"n\" id: \"c\"");
        assert_eq!(rule.jumps_to().as_deref(), Some("CNI-1"));
    }
}

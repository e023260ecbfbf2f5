//! Reading nf_tables.

use netlink_packet_core::NLM_F_DUMP;

use super::batch::{Element, Kind, Target, element_key, message};
use super::wire::{Attributes, attribute, attributes, read_comment, text};
use crate::net::error::NetError;
use crate::net::socket::Socket;

/// The generation that every committed batch raises.
///
/// # Errors
/// [`NetError`].
pub fn generation(socket: &mut Socket) -> Result<u32, NetError> {
    let what = "reading the generation of nf_tables".to_owned();
    let question = message(what, Kind::GetGeneration, 0, Attributes::default());
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
pub fn chain_exists(socket: &mut Socket, table: &str, chain: &str) -> Result<bool, NetError> {
    let mut body = Attributes::default();
    body.text(1, table).text(3, chain);
    let what = format!("looking up chain {chain} of nf_tables table {table}");
    match socket.ask(&message(what, Kind::GetChain, 0, body)) {
        Ok(_) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// All elements of a map; `None` where table or map are not there.
///
/// # Errors
/// [`NetError`].
pub fn elements(socket: &mut Socket, table: &str, map: &str) -> Result<Option<Vec<Element>>, NetError> {
    let mut body = Attributes::default();
    body.text(1, table).text(2, map);
    let what = format!("listing map {map} of nf_tables table {table}");
    match socket.ask(&message(what, Kind::GetElement, NLM_F_DUMP, body)) {
        Ok(answers) => Ok(Some(answers.iter().flat_map(|answer| read_elements(&answer.body)).collect())),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The element with `key`; `None` where it, its map or its table are not there.
///
/// # Errors
/// [`NetError`].
pub fn element(socket: &mut Socket, table: &str, map: &str, key: &[u8]) -> Result<Option<Element>, NetError> {
    let what = format!("looking up an element of map {map} of nf_tables table {table}");
    match socket.ask(&message(what, Kind::GetElement, 0, element_key(table, map, key))) {
        Ok(answers) => Ok(answers.iter().flat_map(|answer| read_elements(&answer.body)).next()),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Chain and comment of every rule of a table; empty where the table is not there.
///
/// # Errors
/// [`NetError`].
pub fn rules(socket: &mut Socket, table: &str) -> Result<Vec<(String, String)>, NetError> {
    let mut body = Attributes::default();
    body.text(1, table);
    let what = format!("listing the rules of nf_tables table {table}");
    let answers = match socket.ask(&message(what, Kind::GetRule, NLM_F_DUMP, body)) {
        Ok(answers) => answers,
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let rule = |body: &[u8]| {
        let body = body.get(4..)?;
        // Kernels without filtering list every table.
        let own = attribute(body, 1).map(text).as_deref() == Some(table);
        let comment = attribute(body, 7).and_then(read_comment).unwrap_or_default();
        own.then_some((text(attribute(body, 2)?), comment))
    };
    Ok(answers.iter().filter_map(|answer| rule(&answer.body)).collect())
}

fn read_elements(body: &[u8]) -> Vec<Element> {
    let list = body.get(4..).and_then(|body| attribute(body, 3)).unwrap_or_default();
    attributes(list).filter_map(|(_, entry)| read_element(entry)).collect()
}

fn read_element(entry: &[u8]) -> Option<Element> {
    let key = attribute(attribute(entry, 1)?, 1)?.to_vec();
    let owner = attribute(entry, 6).and_then(read_comment).unwrap_or_default();
    let data = attribute(entry, 2)?;
    let data = match (attribute(data, 1), attribute(data, 2)) {
        (Some(value), _) => Target::Value(value.to_vec()),
        (None, Some(verdict)) => Target::Jump(attribute(verdict, 2).map(text).unwrap_or_default()),
        (None, None) => return None,
    };
    Some(Element { key, data, owner })
}

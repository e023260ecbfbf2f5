//! Addresses that pods of several networks have at once, because the networks have the same subnet.
//!
//! A map has one element for an address: it is the first pod's. What the others would have there stands in the map
//! `claims` of the same table, and when the element's owner goes, one of them gets it, in the same transaction. A claim
//! stays as long as its owner.
//! Within a network an address is one pod's: whoever had it before has lost it.

use std::path::Path;

use proto::cni::{Attachment, CniError, ErrorCode, NetworkName};

use crate::ledger::LedgerError;
use crate::net::NetError;
use crate::net::nft::{
    Batch, Conflict, Element, Field, InsertError, Map, OnDemand, Place, Removed, Table, Tables, element,
    elements,
};
use crate::net::socket::Socket;
use crate::owner::{Owner, hashed_name, is_stale};
use crate::turn::{Subject, Turn};

/// The map that a table with such addresses needs. Keys are an address, and a name that says which map and whose.
pub const CLAIMS: Map = Map { name: "claims", key: &[Field::Ipv6, Field::LinkName], data: &[Field::Verdict] };

/// How often it is tried again when others take or leave addresses meanwhile.
const ATTEMPTS: usize = 16;

/// Elements with the names of their maps.
type Elements<'a> = &'a [(&'static str, Element)];

/// What an owner is to have in a table.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Elements that only one owner can have.
    pub alone: Elements<'a>,
    /// Elements for its addresses, which pods of other networks may have as well.
    pub shared: Elements<'a>,
    /// Chains that elements jump to.
    pub chains: &'a [OnDemand],
}

/// Why an owner did not get what it is to have.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// An element that only one can have is another's.
    #[error("element {position} is held by {holder}")]
    Held {
        /// Which of those.
        position: usize,
        /// The holder's owner tag.
        holder: String,
    },
    /// Others came in between each time.
    #[error("an address changes hands faster than it can be claimed")]
    Busy,
    /// The lock.
    #[error(transparent)]
    Turn(#[from] LedgerError),
    /// Netlink.
    #[error(transparent)]
    Net(#[from] NetError),
}

impl From<ClaimError> for CniError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Held { .. } => Self::from_error(ErrorCode::PLUGIN, &error),
            ClaimError::Busy => Self::from_error(ErrorCode::TRY_AGAIN_LATER, &error),
            ClaimError::Turn(error) => error.into(),
            ClaimError::Net(error) => error.into(),
        }
    }
}

/// Gives the elements to their owner, or notes its claim to those for its addresses where another network's pod has
/// one. `base` is where locks are.
///
/// # Errors
/// [`ClaimError`].
pub fn place(
    socket: &mut Socket,
    base: &Path,
    table: &Table,
    wanted: Wanted<'_>,
    place: Place,
) -> Result<(), ClaimError> {
    let refuse = |(map, element): &(&'static str, Element)| (*map, element.clone(), Conflict::Refuse);
    let alone: Vec<_> = wanted.alone.iter().map(refuse).collect();
    let mut all = alone.clone();
    all.extend(wanted.shared.iter().map(refuse));
    let mut outcome = place(table, socket, &all, wanted.chains);
    if is_shared(&outcome, &alone) {
        let _turn = Turn::take(base, Subject::Claims)?;
        for _ in 0..ATTEMPTS {
            let mut all = alone.clone();
            for entry in wanted.shared {
                all.push(settle(socket, table, entry)?);
            }
            outcome = place(table, socket, &all, wanted.chains);
            if !is_shared(&outcome, &alone) {
                break;
            }
        }
    }
    match outcome {
        Err(InsertError::Held { position, holder }) if position < alone.len() => {
            Err(ClaimError::Held { position, holder })
        }
        Err(InsertError::Held { .. }) => Err(ClaimError::Busy),
        Err(InsertError::Net(error)) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

/// Whether nothing but an element that others may have as well was in the way.
fn is_shared(outcome: &Result<(), InsertError>, alone: &[(&'static str, Element, Conflict)]) -> bool {
    matches!(outcome, Err(InsertError::Held { position, .. }) if *position >= alone.len())
}

/// Where an element goes: into its place, or among the claims to it.
fn settle(
    socket: &mut Socket,
    table: &Table,
    (map, wanted): &(&'static str, Element),
) -> Result<(&'static str, Element, Conflict), NetError> {
    Ok(match element(socket, table.id(), map, &wanted.key)? {
        None => (*map, wanted.clone(), Conflict::Refuse),
        Some(found) if is_of_other_network(&found, wanted) => {
            (CLAIMS.name, claim(table, map, wanted), Conflict::Replace)
        }
        Some(_) => (*map, wanted.clone(), Conflict::Replace),
    })
}

/// Removes what `gone` names the owner of; addresses that others claim pass to them. Returns what was removed.
///
/// # Errors
/// [`NetError`].
pub fn remove(
    socket: &mut Socket,
    base: &Path,
    table: &Table,
    gone: &dyn Fn(&str) -> bool,
) -> Result<Removed, NetError> {
    // What cannot be locked must go all the same.
    let _turn = Turn::take(base, Subject::Claims).ok();
    let mut removed = hand_over(socket, table, gone)?;
    table.retire(socket, &removed)?;
    removed.extend(table.remove(socket, gone)?);
    Ok(removed)
}

/// As [`remove`], for what belongs to the network and to no valid attachment.
///
/// # Errors
/// [`NetError`].
pub fn gc(
    socket: &mut Socket,
    base: &Path,
    table: &Table,
    network: &NetworkName,
    valid: &[Attachment],
) -> Result<(), NetError> {
    remove(socket, base, table, &|tag| is_stale(tag, network, valid)).map(|_| ())
}

/// As [`remove`], for one owner: without a look at all others' where nobody claims anything.
///
/// # Errors
/// [`NetError`].
pub fn remove_of(
    socket: &mut Socket,
    base: &Path,
    (tables, table): (&Tables, &Table),
    owner: &Owner,
) -> Result<Removed, NetError> {
    if !tables.has(table.family as u8, table.name) {
        return Ok(Removed::new());
    }
    // What cannot be locked must go all the same.
    let _turn = Turn::take(base, Subject::Claims).ok();
    let claims = elements(socket, table.id(), CLAIMS.name)?;
    if claims.is_none_or(|claims| claims.is_empty()) {
        return table.remove_of(socket, tables, owner.tag());
    }
    // An heir has an element that was not noted as its own.
    let gone = |tag: &str| tag == owner.tag();
    let mut removed = hand_over(socket, table, &gone)?;
    table.retire(socket, &removed)?;
    removed.extend(table.remove(socket, &gone)?);
    Ok(removed)
}

fn hand_over(socket: &mut Socket, table: &Table, gone: &dyn Fn(&str) -> bool) -> Result<Removed, NetError> {
    let claims = elements(socket, table.id(), CLAIMS.name)?.unwrap_or_default();
    let mut removed = Removed::new();
    for claim in claims.iter().filter(|claim| !gone(&claim.owner)) {
        let Some((map, key)) = claimed(table, claim) else { continue };
        let held = element(socket, table.id(), map, &key)?;
        if held.as_ref().is_some_and(|held| !gone(&held.owner)) {
            continue;
        }
        let mut batch = Batch::new(table.id());
        if held.is_some() {
            batch.delete_element(map, &key);
        }
        batch.add_element(map, &Element { key, ..claim.clone() });
        match batch.commit(socket, None) {
            Ok(()) => removed.extend(held.map(|held| (map, held))),
            // Somebody came first, or `nft flush ruleset` did.
            Err(error) if error.is_exists() || error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// What is to be found in the tables where all is well: each element in its place, or as a claim.
///
/// # Errors
/// [`NetError`].
pub fn expected(
    socket: &mut Socket,
    table: &Table,
    wanted: Elements<'_>,
) -> Result<Vec<(&'static str, Element)>, NetError> {
    wanted.iter().map(|entry| settle(socket, table, entry).map(|(map, found, _)| (map, found))).collect()
}

/// What has no owner is of no network.
fn is_of_other_network(found: &Element, wanted: &Element) -> bool {
    let network = |element: &Element| element.owner.split('/').next().map(str::to_owned);
    !found.owner.is_empty() && network(found) != network(wanted)
}

/// An element as a claim.
fn claim(table: &Table, map: &str, element: &Element) -> Element {
    let index = table.maps.iter().position(|known| known.name == map).unwrap_or_default();
    let mut key = element.key.clone();
    key.resize(16, 0);
    let name = hashed_name(&format!("map{index}"), &element.owner);
    key.extend(name.bytes().chain(std::iter::repeat(0)).take(16));
    Element { key, ..element.clone() }
}

/// Which map's element a claim is for, and its key.
fn claimed(table: &Table, claim: &Element) -> Option<(&'static str, Vec<u8>)> {
    let index = char::from(*claim.key.get(19)?).to_digit(10)?;
    let map = table.maps.get(usize::try_from(index).ok()?)?;
    let length = if map.key == [Field::Ipv4] { 4 } else { 16 };
    Some((map.name, claim.key.get(..length)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nft::TableFamily;

    #[test]
    fn a_claim_says_what_it_is_for() {
        let map = |name, key| Map { name, key, data: &[Field::Verdict] };
        let maps = vec![map("a", &[Field::Ipv4]), map("b", &[Field::Ipv6])];
        let table = Table { family: TableFamily::Inet, name: "t", maps, chains: Vec::new() };
        let check = |map: &'static str, key: &[u8]| {
            let element = Element::jump(key.to_vec(), "chain", "n/c/eth0");
            let claim = claim(&table, map, &element);
            assert_eq!(claim.key.len(), 32);
            assert_eq!(claimed(&table, &claim), Some((map, key.to_vec())));
            assert_eq!((claim.data, claim.owner), (element.data, element.owner));
        };
        check("a", &[10, 0, 0, 2]);
        check("b", &[0xfd; 16]);
    }
}

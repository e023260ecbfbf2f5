//! Which elements of a table an owner has, noted in the table itself and in the same transaction: who takes them out
//! need not list everybody's, and no kill can part a note from what it tells of.
//!
//! Notes are elements of the map `owned`, numbered for each owner. Their user data holds the owner's tag and, beside
//! it, names of maps with keys. What a note names is looked up before anything is done to it; an owner without notes
//! (made by an earlier version, or with a tag that leaves no room) has to be found by listing.

use sha2::{Digest, Sha256};

use super::batch::{Element, Field, Map, Target};
use super::query::{FoundElement, count, elements, elements_at};
use super::table::{Removed, Table};
use super::wire::{comment, user_data};
use crate::net::error::NetError;
use crate::net::socket::Socket;

/// Where the notes are.
pub const OWNED: Map = Map { name: "owned", key: &[Field::Ipv6, Field::Number], data: &[Field::Number] };
/// The kernel takes up to 256 bytes, but counts them in one byte, with what it keeps beside them.
const USER_DATA: usize = 240;
/// Type of the list of keys in user data; tools show only comments.
const KEYS: u8 = 0xb0;

/// Name of a map, and a key in it.
pub type Place = (&'static str, Vec<u8>);

/// What an owner has: what was noted and is still its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Elements with the names of their maps.
    pub elements: Removed,
    /// Keys of the notes.
    pub notes: Vec<Vec<u8>>,
    /// How many notes the table has, of all owners; `None` where the kernel does not say.
    all: Option<u32>,
}

impl Holding {
    /// Whether nobody else has a note.
    pub fn is_everything(&self) -> bool {
        self.all.is_some_and(|all| all as usize <= self.notes.len())
    }
}

/// A note to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Key in [`OWNED`], number of notes, and tag.
    pub element: Element,
    /// The tag once more as tools show it, and the list.
    pub user_data: Vec<u8>,
}

/// What an owner has in a table; `None` where that is not noted.
///
/// # Errors
/// [`NetError`].
pub fn holding(socket: &mut Socket, table: &Table, owner: &str) -> Result<Option<Holding>, NetError> {
    let at = |number| (OWNED.name, key(owner, number));
    let mut notes = elements_at(socket, table.id(), &[at(0)])?;
    let rest: Vec<_> = (1..notes[0].as_ref().map_or(0, number_of_notes)).map(at).collect();
    notes.extend(elements_at(socket, table.id(), &rest)?);
    let Some(notes) = notes.into_iter().collect::<Option<Vec<FoundElement>>>() else { return Ok(None) };
    let known = |(name, key): (&str, &[u8])| {
        let map = table.maps.iter().find(|map| map.name == name)?;
        Some((map.name, key.to_vec()))
    };
    let lists: Option<Vec<&[u8]>> = notes.iter().map(|note| user_data(&note.user_data, KEYS)).collect();
    let Some(lists) = lists else { return Ok(None) };
    let listed: Vec<_> = lists.into_iter().flat_map(entries).filter_map(known).collect();
    let found = elements_at(socket, table.id(), &listed)?;
    let own = listed.iter().zip(found).filter_map(|((map, _), found)| Some((*map, found?.element)));
    let elements = own.filter(|(_, element)| element.owner == owner).collect();
    let notes = notes.into_iter().map(|note| note.element.key).collect();
    Ok(Some(Holding { elements, notes, all: count(socket, table.id(), OWNED.name)? }))
}

/// Places of everything that an owner has, its notes among them, also where those are not complete.
///
/// # Errors
/// [`NetError`].
pub fn left_by(socket: &mut Socket, table: &Table, owner: &str) -> Result<Vec<Place>, NetError> {
    let held = match holding(socket, table, owner)? {
        Some(held) => held.elements.into_iter().map(|(map, element)| (map, element.key)).collect(),
        None => Vec::new(),
    };
    let all = elements(socket, table.id(), OWNED.name)?.unwrap_or_default();
    let notes = all.into_iter().filter(|note| note.owner == owner).map(|note| (OWNED.name, note.key));
    Ok(held.into_iter().chain(notes).collect())
}

/// The notes that tell of `elements`, all of one owner; none where its tag leaves no room for them.
pub fn notes<'a>(elements: impl Iterator<Item = (&'a str, &'a Element)>) -> Vec<Note> {
    let (mut lists, mut tag): (Vec<Vec<u8>>, _) = (Vec::new(), "");
    for (map, element) in elements {
        tag = &element.owner;
        let entry = entry(map, &element.key);
        // The list has a type and a length before it.
        let room = USER_DATA.saturating_sub(comment(tag).len() + 2).min(usize::from(u8::MAX));
        match lists.last_mut() {
            _ if entry.len() > room => return Vec::new(),
            Some(list) if list.len() + entry.len() <= room => list.extend(entry),
            _ => lists.push(entry),
        }
    }
    let data = Target::Value((lists.len() as u32).to_be_bytes().to_vec());
    let note = |(number, list): (usize, Vec<u8>)| {
        let mut user_data = comment(tag);
        user_data.extend([KEYS, list.len() as u8]);
        user_data.extend(list);
        let key = key(tag, number as u32);
        Note { element: Element { key, data: data.clone(), owner: tag.to_owned() }, user_data }
    };
    lists.into_iter().enumerate().map(note).collect()
}

/// Whether a table has no notes.
///
/// # Errors
/// [`NetError`].
pub fn is_empty(socket: &mut Socket, table: &Table) -> Result<bool, NetError> {
    // Kernels before 6.15 do not tell how many there are.
    match count(socket, table.id(), OWNED.name)? {
        Some(count) => Ok(count == 0),
        None => Ok(elements(socket, table.id(), OWNED.name)?.unwrap_or_default().is_empty()),
    }
}

/// The first note tells how many there are.
fn number_of_notes(first: &FoundElement) -> u32 {
    const MOST: u32 = 1 << 16;
    match &first.element.data {
        Target::Value(value) => value.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)).min(MOST),
        Target::Jump(_) => 0,
    }
}

/// Longer tags than 128 bits would not fit a key.
fn key(owner: &str, number: u32) -> Vec<u8> {
    let mut key = Sha256::digest(owner)[..16].to_vec();
    key.extend(number.to_be_bytes());
    key
}

/// An entry of a list: lengths in one byte each, name, key.
fn entry(map: &str, key: &[u8]) -> Vec<u8> {
    [&[map.len() as u8, key.len() as u8], map.as_bytes(), key].concat()
}

/// The entries of a list; stops at the first that is cut short.
fn entries(list: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let (name, key) = (usize::from(*rest.first()?), usize::from(*rest.get(1)?));
        let (entry, more) = rest.get(2..)?.split_at_checked(name + key)?;
        rest = more;
        let (name, key) = entry.split_at(name);
        Some((std::str::from_utf8(name).ok()?, key))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(owner: &str, port: u16) -> Element {
        let key = [&[6, 0, 0, 0][..], &port.to_be_bytes(), &[0; 2]].concat();
        Element { key, data: Target::Value(vec![0; 8]), owner: owner.to_owned() }
    }

    #[test]
    fn notes_tell_of_all_elements_within_the_kernels_bound() {
        let check = |tag: usize, elements: usize, expect: usize| {
            let tag = "t".repeat(tag);
            let elements: Vec<Element> = (0..elements).map(|port| element(&tag, port as u16)).collect();
            let notes = notes(elements.iter().map(|element| ("ports4", element)));
            assert_eq!(notes.len(), expect, "{} elements of {}", elements.len(), tag.len());
            assert!(notes.iter().all(|note| note.user_data.len() <= USER_DATA));
            let listed = notes.iter().flat_map(|note| user_data(&note.user_data, KEYS)).flat_map(entries);
            let listed: Vec<_> = listed.map(|(map, key)| (map.to_owned(), key.to_vec())).collect();
            let wanted = elements.iter().map(|element| ("ports4".to_owned(), element.key.clone()));
            let wanted: Vec<_> = if expect == 0 { Vec::new() } else { wanted.collect() };
            assert_eq!(listed, wanted);
            let told =
                |note: &Note| note.element.data == Target::Value((expect as u32).to_be_bytes().to_vec());
            assert!(notes.iter().all(told));
        };
        check(14, 0, 0);
        check(14, 3, 1);
        check(75, 10, 1);
        check(75, 11, 2);
        check(75, 1000, 100);
        check(219, 1, 1);
        check(220, 1, 0);
    }

    #[test]
    fn a_list_that_is_cut_short_ends_there() {
        let whole = entry("ports4", &[1, 2, 3]);
        assert_eq!(entries(&whole).collect::<Vec<_>>(), [("ports4", &[1, 2, 3][..])]);
        (1..whole.len()).for_each(|length| assert_eq!(entries(&whole[..length]).count(), 0));
        assert_eq!(entries(&[255; 9]).count(), 0);
    }
}

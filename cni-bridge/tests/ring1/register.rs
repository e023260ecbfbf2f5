//! Elements of nf_tables and who has them: one owner's go, everybody else's stay.

use cni_bridge::net::nft::{Conflict, Element, Field, InsertError, Map, Removed, Table, TableFamily, Tables};
use cni_bridge::net::nft::{Target, elements};
use cni_bridge::net::socket::Socket;

use super::node::{NetNs, privileged};

fn table() -> Table {
    let map = |name| Map { name, key: &[Field::Number], data: &[Field::Number] };
    Table { family: TableFamily::Inet, name: "t", maps: vec![map("one"), map("two")], chains: Vec::new() }
}

fn insert(socket: &mut Socket, owner: &str, map: &'static str, keys: &[u32]) -> Result<(), InsertError> {
    let element = |key: &u32| Element {
        key: key.to_be_bytes().to_vec(),
        data: Target::Value(vec![0; 4]),
        owner: owner.to_owned(),
    };
    let conflict = if map == "one" { Conflict::Refuse } else { Conflict::Replace };
    let wanted: Vec<_> = keys.iter().map(|key| (map, element(key), conflict)).collect();
    table().insert(socket, &wanted, &[])
}

fn remove(socket: &mut Socket, owner: &str) -> Removed {
    let tables = Tables::read(socket).unwrap();
    table().remove_of(socket, &tables, owner).unwrap()
}

/// Owners and keys in a map; `None` where there is none.
fn found(socket: &mut Socket, map: &str) -> Option<Vec<(String, u32)>> {
    let found = elements(socket, table().id(), map).unwrap()?;
    let number = |element: Element| (element.owner, u32::from_be_bytes(element.key.try_into().unwrap()));
    let mut found: Vec<_> = found.into_iter().map(number).collect();
    found.sort();
    Some(found)
}

fn of(owner: &str, keys: impl IntoIterator<Item = u32>) -> Option<Vec<(String, u32)>> {
    Some(keys.into_iter().map(|key| (owner.to_owned(), key)).collect())
}

#[test]
fn an_owner_takes_its_own_along() {
    if !privileged() {
        return;
    }
    NetNs::new().run(|| {
        let socket = &mut Socket::netfilter().unwrap();
        // More than one note tells of.
        insert(socket, "n/a/eth0", "one", &(0..200).collect::<Vec<_>>()).unwrap();
        insert(socket, "n/b/eth0", "one", &[200, 201]).unwrap();
        assert!(matches!(insert(socket, "n/c/eth0", "one", &[5]), Err(InsertError::Held { .. })));
        assert_eq!(remove(socket, "n/a/eth0").len(), 200);
        assert_eq!(found(socket, "one"), of("n/b/eth0", [200, 201]));
        assert_eq!(remove(socket, "n/a/eth0"), []);
        // With the last one the table goes.
        remove(socket, "n/b/eth0");
        assert_eq!(found(socket, "one"), None);
        assert_eq!(remove(socket, "n/b/eth0"), []);
    });
}

#[test]
fn another_attempt_replaces_the_one_before() {
    if !privileged() {
        return;
    }
    NetNs::new().run(|| {
        let socket = &mut Socket::netfilter().unwrap();
        insert(socket, "n/b/eth0", "one", &[9]).unwrap();
        insert(socket, "n/a/eth0", "one", &[1, 2, 3]).unwrap();
        insert(socket, "n/a/eth0", "one", &[3, 4]).unwrap();
        assert_eq!(
            found(socket, "one"),
            of("n/a/eth0", [3, 4]).map(|mut own| {
                own.push(("n/b/eth0".to_owned(), 9));
                own
            })
        );
        remove(socket, "n/a/eth0");
        assert_eq!(found(socket, "one"), of("n/b/eth0", [9]));
    });
}

#[test]
fn what_others_took_over_is_theirs() {
    if !privileged() {
        return;
    }
    NetNs::new().run(|| {
        let socket = &mut Socket::netfilter().unwrap();
        insert(socket, "n/a/eth0", "two", &[1, 2]).unwrap();
        insert(socket, "n/b/eth0", "two", &[2]).unwrap();
        assert_eq!(remove(socket, "n/a/eth0").len(), 1);
        assert_eq!(found(socket, "two"), of("n/b/eth0", [2]));
    });
}

#[test]
fn without_notes_an_owner_is_found_as_well() {
    if !privileged() {
        return;
    }
    let node = NetNs::new();
    let long = format!("n/{}/eth0", "c".repeat(240));
    let owner = long.clone();
    node.run(move || {
        let socket = &mut Socket::netfilter().unwrap();
        insert(socket, "n/a/eth0", "one", &[1]).unwrap();
        insert(socket, "n/b/eth0", "one", &[2]).unwrap();
        insert(socket, &owner, "one", &[3]).unwrap();
        remove(socket, &owner);
        assert_eq!(found(socket, "one").unwrap().len(), 2);
        insert(socket, &owner, "one", &[3]).unwrap();
    });
    node.output("nft", &["flush", "map", "inet", "t", "owned"]);
    node.run(move || {
        let socket = &mut Socket::netfilter().unwrap();
        remove(socket, "n/a/eth0");
        remove(socket, &long);
        assert_eq!(found(socket, "one"), of("n/b/eth0", [2]));
        remove(socket, "n/b/eth0");
        assert_eq!(found(socket, "one"), None);
    });
}

/// An earlier version made the table.
#[test]
fn a_table_without_a_map_for_notes_gets_one() {
    if !privileged() {
        return;
    }
    let node = NetNs::new();
    node.run(|| insert(&mut Socket::netfilter().unwrap(), "n/a/eth0", "one", &[1]).unwrap());
    node.output("nft", &["delete", "map", "inet", "t", "owned"]);
    node.run(|| {
        let socket = &mut Socket::netfilter().unwrap();
        insert(socket, "n/b/eth0", "one", &[2]).unwrap();
        remove(socket, "n/b/eth0");
        assert_eq!(found(socket, "one"), of("n/a/eth0", [1]));
        remove(socket, "n/a/eth0");
        assert_eq!(found(socket, "one"), None);
    });
}

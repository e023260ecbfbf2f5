//! Two networks with the same subnet, whose pods have the same addresses.

use proto::cni::{NetConfList, Verb};
use serde_json::{Value, json};

use super::node::{NetNs, Node, privileged};
use super::wire::{connect, serve, wire};

fn conf(bridge: &str) -> Value {
    json!({"type": "bridge", "bridge": bridge, "isDefaultGateway": true, "ipMasq": true, "isolateNetworks": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}})
}

/// A node that can be asked for either of the networks `berth` and `other`.
fn node() -> (Node, [NetConfList; 2]) {
    let (node, first) = Node::with(conf("br0")).beside("other", conf("br1"));
    let lists = [first, node.list.clone()];
    (node, lists)
}

#[test]
fn del_takes_nothing_from_the_other_network() {
    if !privileged() {
        return;
    }
    let (mut node, lists) = node();
    let (pods, world) = ([NetNs::new(), NetNs::new()], NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    serve(&world, "0.0.0.0:1000");
    for (going, by_gc) in [(0, false), (1, false), (0, true), (1, true)] {
        let staying = 1 - going;
        let added: Vec<_> = (0..2)
            .map(|index| {
                node.list = lists[index].clone();
                node.add("a", &pods[index], Value::Null).unwrap()
            })
            .collect();
        assert_eq!(added[0].ip4(), added[1].ip4());
        for index in 0..2 {
            node.list = lists[index].clone();
            node.check("a", &pods[index], Value::Null, &added[index]).unwrap();
        }
        node.list = lists[going].clone();
        match by_gc {
            true => node.whole(Verb::Gc, Some(&[])).unwrap(),
            false => node.del("a", None).unwrap(),
        }
        node.list = lists[staying].clone();
        node.check("a", &pods[staying], Value::Null, &added[staying]).unwrap();
        let left = node.leftovers();
        let of_gone = format!("{}/a/eth0", lists[going].name);
        assert!(!left.iter().any(|what| what.ends_with(&of_gone)), "{left:?}");
        if staying == 0 {
            // The way back leads to the first bridge only.
            assert_eq!(connect(&pods[0], "192.0.2.2:1000"), Ok("192.0.2.1".to_owned()));
        }
        node.del("a", None).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
    }
}

/// Within a network an address has one pod; what another had of it is its leftover.
#[test]
fn within_a_network_the_last_one_has_the_address() {
    if !privileged() {
        return;
    }
    let (mut node, lists) = node();
    node.list = lists[0].clone();
    let (lost, pod) = (NetNs::new(), NetNs::new());
    node.add("a", &lost, Value::Null).unwrap();
    // The store is lost with its container's reservation.
    let store = node.dir.path().join(node.list.name.as_str());
    std::fs::remove_dir_all(store).unwrap();
    let added = node.add("b", &pod, Value::Null).unwrap();
    node.check("b", &pod, Value::Null, &added).unwrap();
    node.del("a", None).unwrap();
    node.check("b", &pod, Value::Null, &added).unwrap();
    node.del("b", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

/// Tables of an earlier version have no claims.
#[test]
fn an_earlier_versions_table_is_used_and_removed() {
    if !privileged() {
        return;
    }
    let (mut node, lists) = node();
    let pods = [NetNs::new(), NetNs::new()];
    let forget_claims = |node: &Node| {
        for table in ["berth_masquerade", "berth_isolation"] {
            node.host.output("nft", &["delete", "map", "inet", table, "claims"]);
        }
    };
    node.list = lists[0].clone();
    let first = node.add("a", &pods[0], Value::Null).unwrap();
    forget_claims(&node);
    node.list = lists[1].clone();
    let second = node.add("a", &pods[1], Value::Null).unwrap();
    node.check("a", &pods[1], Value::Null, &second).unwrap();
    node.del("a", None).unwrap();
    node.list = lists[0].clone();
    node.check("a", &pods[0], Value::Null, &first).unwrap();
    forget_claims(&node);
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
    assert!(!node.host.output("nft", &["list", "tables"]).contains("berth_masquerade"));
}

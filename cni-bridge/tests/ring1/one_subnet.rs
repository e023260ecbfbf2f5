//! Two networks with the same subnet, whose pods have the same addresses.

use proto::cni::{NetConfList, Verb};
use serde_json::{Value, json};

use super::node::{NetNs, Node, privileged};
use super::wire::{connect, serve, wire};

/// Every plugin that has something for an address.
fn conf(bridge: &str, policy: &str) -> Value {
    let ranges = json!([[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]);
    json!([
        {"type": "bridge", "bridge": bridge, "isDefaultGateway": true, "ipMasq": true, "isolateNetworks": true,
         "ipam": {"type": "host-local", "ranges": ranges}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "masqAll": bridge == "br1"},
        {"type": "firewall", "ingressPolicy": policy},
    ])
}

/// A node that can be asked for either of the networks `berth` and `other`, whose pods have the policies.
fn node(policies: [&str; 2]) -> (Node, [NetConfList; 2]) {
    let node = Node::new(|json| json["plugins"] = conf("br0", policies[0]));
    let (node, first) = node.beside("other", conf("br1", policies[1]));
    let lists = [first, node.list.clone()];
    (node, lists)
}

/// What the pods of the networks publish.
fn ports(network: usize) -> Value {
    json!([{"hostPort": 8080 + network, "containerPort": 80}])
}

#[test]
fn del_takes_nothing_from_the_other_network() {
    if !privileged() {
        return;
    }
    for policies in [["same-bridge", "isolated"], ["isolated", "isolated"]] {
        takes_nothing_from_the_other(policies);
    }
}

fn takes_nothing_from_the_other(policies: [&str; 2]) {
    let (mut node, lists) = node(policies);
    let (pods, world) = ([NetNs::new(), NetNs::new()], NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    serve(&world, "0.0.0.0:1000");
    serve(&pods[0], "0.0.0.0:80");
    for (going, by_gc) in [(0, false), (1, false), (0, true), (1, true)] {
        let staying = 1 - going;
        let added: Vec<_> = (0..2)
            .map(|index| {
                node.list = lists[index].clone();
                node.add("a", &pods[index], ports(index)).unwrap()
            })
            .collect();
        assert_eq!(added[0].ip4(), added[1].ip4());
        for index in 0..2 {
            node.list = lists[index].clone();
            node.check("a", &pods[index], ports(index), &added[index]).unwrap();
        }
        node.list = lists[going].clone();
        match by_gc {
            true => node.whole(Verb::Gc, Some(&[])).unwrap(),
            false => node.del("a", None).unwrap(),
        }
        node.list = lists[staying].clone();
        node.check("a", &pods[staying], ports(staying), &added[staying]).unwrap();
        let left = node.leftovers();
        let of_gone = format!("{}/a/eth0", lists[going].name);
        assert!(!left.iter().any(|what| what.ends_with(&of_gone)), "{left:?}");
        if staying == 0 {
            // The way back leads to the first bridge only.
            assert_eq!(connect(&pods[0], "192.0.2.2:1000"), Ok("192.0.2.1".to_owned()));
            assert_eq!(connect(&world, "192.0.2.1:8080"), Ok("192.0.2.2".to_owned()));
        }
        node.del("a", None).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
    }
    assert!(!node.host.output("nft", &["list", "tables"]).contains("berth_firewall"));
}

/// A container with two networks, both of which are told of its ports, as engines do it.
#[test]
fn a_container_may_publish_a_port_by_two_networks() {
    if !privileged() {
        return;
    }
    let (mut node, lists) = node(["isolated", "isolated"]);
    let (pods, other, world) = ([NetNs::new(), NetNs::new()], NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    serve(&pods[0], "0.0.0.0:80");
    let mut add = |index: usize, pod: &NetNs, container| {
        node.list = lists[index].clone();
        node.add(container, pod, ports(0))
    };
    let added = [0, 1].map(|index| add(index, &pods[index], "a").unwrap());
    let error = add(1, &other, "b").err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("already published for berth/a/eth0"), "{error}");
    node.del("b", Some(&other.path)).unwrap();
    for index in [1, 0] {
        node.list = lists[index].clone();
        node.check("a", &pods[index], ports(0), &added[index]).unwrap();
        assert_eq!(connect(&world, "192.0.2.1:8080"), Ok("192.0.2.2".to_owned()));
        node.del("a", Some(&pods[index].path)).unwrap();
    }
    assert_eq!(node.leftovers(), [""; 0]);
}

/// Within a network an address has one pod; what another had of it is its leftover.
#[test]
fn within_a_network_the_last_one_has_the_address() {
    if !privileged() {
        return;
    }
    let (mut node, lists) = node(["isolated", "isolated"]);
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
    let (mut node, lists) = node(["isolated", "isolated"]);
    let pods = [NetNs::new(), NetNs::new()];
    let forget_claims = |node: &Node| {
        for table in [
            "inet berth_masquerade",
            "inet berth_isolation",
            "inet berth_portmap",
            "inet berth_firewall",
            "bridge berth_firewall",
        ] {
            node.host.output("nft", &[&format!("delete map {table} claims")]);
        }
    };
    node.list = lists[0].clone();
    let first = node.add("a", &pods[0], ports(0)).unwrap();
    forget_claims(&node);
    node.list = lists[1].clone();
    let second = node.add("a", &pods[1], ports(1)).unwrap();
    node.check("a", &pods[1], ports(1), &second).unwrap();
    node.del("a", None).unwrap();
    node.list = lists[0].clone();
    node.check("a", &pods[0], ports(0), &first).unwrap();
    forget_claims(&node);
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
    assert!(!node.host.output("nft", &["list", "tables"]).contains("berth_masquerade"));
}

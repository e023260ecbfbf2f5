//! bridge with VLANs.

use serde_json::{Value, json};

use crate::node::{NetNs, Node};
use crate::wire::{Feature, connect, is_cut_off, kernel_has, serve};

fn conf(vlan: u16, subnet: &str) -> Value {
    json!({"type": "bridge", "bridge": "br0", "isGateway": true, "vlan": vlan,
        "ipam": {"type": "host-local", "subnet": subnet}})
}

#[test]
fn a_vlan_is_a_network_of_its_own() {
    if !kernel_has(Feature::BridgeVlans) {
        return;
    }
    let node = Node::with(conf(100, "10.8.0.0/24"));
    let (a, b, c) = (NetNs::new(), NetNs::new(), NetNs::new());
    let first = node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    let names: Vec<&str> = first.result.interfaces.iter().map(|link| link.name.as_str()).collect();
    assert_eq!((names[0], names[3]), ("br0", "br0.100"));
    serve(&node.host, "0.0.0.0:1000");
    serve(&b, "0.0.0.0:1000");
    assert_eq!(connect(&a, "10.8.0.1:1000"), Ok("10.8.0.2".to_owned()));
    assert_eq!(connect(&a, "10.8.0.3:1000"), Ok("10.8.0.2".to_owned()));
    node.check("a", &a, Value::Null, &first).unwrap();
    // The same subnet in another VLAN, without a gateway: nobody answers.
    let mut other = conf(200, "10.8.0.0/24");
    other["isGateway"] = false.into();
    other["ipam"]["rangeStart"] = "10.8.0.20".into();
    let (node, list) = node.beside("other", other);
    node.add("c", &c, Value::Null).unwrap();
    assert!(is_cut_off(&c, "10.8.0.3:1000") && is_cut_off(&c, "10.8.0.1:1000"));
    node.del("c", Some(&c.path)).unwrap();
    let node = Node { list, ..node };
    let veth = first.result.interfaces[1].name.clone();
    assert!(!node.host.output("bridge", &["vlan", "show", "dev", &veth]).contains("1 PVID"));
    node.host.output("bridge", &["vlan", "del", "vid", "100", "dev", &veth]);
    let error = node.check("a", &a, Value::Null, &first).unwrap_err();
    assert!(error.msg.contains("does not carry VLAN 100"), "{error}");
    node.del("a", Some(&a.path)).unwrap();
    node.del("b", Some(&b.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_trunk_carries_tags() {
    if !kernel_has(Feature::BridgeVlans) || !kernel_has(Feature::Vlan) {
        return;
    }
    let node = Node::with(json!({"type": "bridge", "bridge": "br0", "preserveDefaultVlan": true,
        "vlanTrunk": [{"id": 7}, {"minID": 30, "maxID": 32}]}));
    let (a, b) = (NetNs::new(), NetNs::new());
    let first = node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    for (pod, address) in [(&a, "10.8.1.2/24"), (&b, "10.8.1.3/24")] {
        for id in ["31", "33"] {
            let name = format!("v{id}");
            pod.output("ip", &["link", "add", &name, "link", "eth0", "type", "vlan", "id", id]);
            pod.output("ip", &["link", "set", &name, "up"]);
        }
        pod.output("ip", &["addr", "add", address, "dev", "v31"]);
        pod.output("ip", &["addr", "add", &address.replace("10.8.1", "10.8.3"), "dev", "v33"]);
    }
    serve(&b, "0.0.0.0:1000");
    assert_eq!(connect(&a, "10.8.1.3:1000"), Ok("10.8.1.2".to_owned()));
    assert!(is_cut_off(&a, "10.8.3.3:1000"), "VLAN 33 is not in the trunk");
    let shown = node.host.output("bridge", &["vlan", "show", "dev", &first.result.interfaces[1].name]);
    assert!(shown.contains("1 PVID"), "{shown}");
    node.check("a", &a, Value::Null, &first).unwrap();
}

/// What goes without a tag is of `vlan`, although the trunk has its number too.
#[test]
fn the_native_vlan_may_be_in_the_trunk() {
    if !kernel_has(Feature::BridgeVlans) || !kernel_has(Feature::Vlan) {
        return;
    }
    let mut both = conf(100, "10.8.0.0/24");
    both["vlanTrunk"] = json!([{"minID": 99, "maxID": 101}]);
    let (node, pod, plain) = (Node::with(both), NetNs::new(), NetNs::new());
    let added = node.add("a", &pod, Value::Null).unwrap();
    let shown = node.host.output("bridge", &["vlan", "show", "dev", &added.result.interfaces[1].name]);
    let line = |id: &str| shown.lines().map(|line| line.trim_end()).find(|line| line.contains(id)).unwrap();
    assert!(line("100").ends_with("100 PVID Egress Untagged"), "{shown}");
    assert!(line("99").ends_with("99") && line("101").ends_with("101"), "{shown}");
    serve(&node.host, "0.0.0.0:1000");
    assert_eq!(connect(&pod, "10.8.0.1:1000"), Ok("10.8.0.2".to_owned()));
    node.check("a", &pod, Value::Null, &added).unwrap();
    // And a pod of the VLAN alone hears it.
    let (node, list) = node.beside("other", {
        let mut conf = conf(100, "10.8.0.0/24");
        conf["ipam"]["rangeStart"] = "10.8.0.20".into();
        conf
    });
    node.add("b", &plain, Value::Null).unwrap();
    serve(&plain, "0.0.0.0:1000");
    assert_eq!(connect(&pod, "10.8.0.20:1000"), Ok("10.8.0.2".to_owned()));
    node.del("b", Some(&plain.path)).unwrap();
    let node = Node { list, ..node };
    node.del("a", Some(&pod.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_locked_port_in_a_vlan_takes_the_pods_frames_only() {
    if !kernel_has(Feature::BridgeVlans) {
        return;
    }
    let mut locked = conf(100, "10.8.0.0/24");
    locked["macspoofchk"] = true.into();
    let (node, pod) = (Node::with(locked), NetNs::new());
    let added = node.add("a", &pod, Value::Null).unwrap();
    serve(&node.host, "0.0.0.0:1000");
    assert_eq!(connect(&pod, "10.8.0.1:1000"), Ok("10.8.0.2".to_owned()));
    node.check("a", &pod, Value::Null, &added).unwrap();
    pod.output("ip", &["link", "set", "eth0", "address", "02:00:00:00:00:66"]);
    assert!(is_cut_off(&pod, "10.8.0.1:1000"));
}

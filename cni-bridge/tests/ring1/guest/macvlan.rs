//! macvlan on VLANs that are made on demand.

use serde_json::{Value, json};

use crate::macvlan::{NOTHING, changed, on_wire};
use crate::macvlan_faults::killed_at_any_time;
use crate::node::{NetNs, Node};
use crate::wire::{Feature, connect, kernel_has, serve};

#[test]
fn a_vlan_is_made_on_demand_and_goes_with_its_last_user() {
    if !kernel_has(Feature::Vlan) {
        return;
    }
    for id in [1, 50, 4094] {
        let name = format!("wire0.{id}");
        let (node, world) = on_wire(changed(|conf| conf["master"] = name.as_str().into()));
        world.output("ip", &["link", "add", "v", "link", "wire1", "type", "vlan", "id", &id.to_string()]);
        world.output("ip", &["addr", "flush", "dev", "wire1"]);
        world.output("ip", &["addr", "add", "192.0.2.2/24", "dev", "v"]);
        world.output("ip", &["link", "set", "v", "up"]);
        serve(&world, "0.0.0.0:1000");
        let (a, b) = (NetNs::new(), NetNs::new());
        let first = node.add("a", &a, Value::Null).unwrap();
        node.add("b", &b, Value::Null).unwrap();
        assert_eq!(connect(&a, "192.0.2.2:1000"), Ok("192.0.2.10".to_owned()));
        node.check("a", &a, Value::Null, &first).unwrap();
        node.del("a", Some(&a.path)).unwrap();
        assert!(node.leftovers().contains(&name));
        assert_eq!(connect(&b, "192.0.2.2:1000"), Ok("192.0.2.11".to_owned()));
        node.del("b", Some(&b.path)).unwrap();
        assert_eq!(node.leftovers(), NOTHING);
    }
}

#[test]
fn vlans_that_are_not_ours_stay() {
    if !kernel_has(Feature::Vlan) {
        return;
    }
    let (node, _world) = on_wire(changed(|conf| conf["master"] = "wire0.7".into()));
    node.host.output("ip", &["link", "add", "wire0.7", "link", "wire0", "type", "vlan", "id", "7"]);
    node.host.output("ip", &["link", "set", "wire0.7", "up"]);
    let pod = NetNs::new();
    node.add("a", &pod, Value::Null).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    assert!(node.host.output("ip", &["-o", "link"]).contains("wire0.7"));
    assert_eq!(node.leftovers(), NOTHING);
}
#[test]
fn a_killed_call_leaves_no_vlan() {
    if !kernel_has(Feature::Vlan) {
        return;
    }
    let (node, _world) = on_wire(changed(|conf| conf["master"] = "wire0.9".into()));
    killed_at_any_time(&node, 20);
}

#[test]
fn an_internal_network_is_on_a_dummy() {
    if !kernel_has(Feature::Dummy) {
        return;
    }
    let node = Node::with(json!({"type": "macvlan", "internal": true, "mtu": 9000,
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"}}));
    let (a, b) = (NetNs::new(), NetNs::new());
    let added = node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    let parent = node.leftovers().into_iter().find(|name| name.starts_with("void")).unwrap();
    assert!(node.host.output("ip", &["-d", "link", "show", &parent]).contains("dummy"));
    serve(&b, "0.0.0.0:1000");
    assert_eq!(connect(&a, "10.7.0.3:1000"), Ok("10.7.0.2".to_owned()));
    node.check("a", &a, Value::Null, &added).unwrap();
    node.del("a", None).unwrap();
    node.del("b", None).unwrap();
    assert_eq!(node.leftovers(), NOTHING);
}

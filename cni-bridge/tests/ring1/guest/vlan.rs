//! vlan.

use proto::cni::ErrorCode;
use serde_json::{Value, json};

use crate::node::{NetNs, Node};
use crate::wire::{Feature, connect, kernel_has, serve, wire};

fn conf() -> Value {
    json!({"type": "vlan", "master": "wire0", "vlanId": 20,
        "ipam": {"type": "static", "addresses": [{"address": "10.20.0.5/24"}]}})
}

fn on_wire(conf: Value) -> (Node, NetNs) {
    let (node, world) = (Node::with(conf), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    world.output("ip", &["link", "add", "v", "link", "wire1", "type", "vlan", "id", "20"]);
    world.output("ip", &["addr", "add", "10.20.0.1/24", "dev", "v"]);
    world.output("ip", &["link", "set", "v", "up"]);
    serve(&world, "0.0.0.0:1000");
    (node, world)
}

#[test]
fn the_pod_has_the_vlan() {
    if !kernel_has(Feature::Vlan) {
        return;
    }
    let (node, _world) = on_wire(conf());
    let (pod, other) = (NetNs::new(), NetNs::new());
    let added = node.add("a", &pod, Value::Null).unwrap();
    assert_eq!(connect(&pod, "10.20.0.1:1000"), Ok("10.20.0.5".to_owned()));
    node.check("a", &pod, Value::Null, &added).unwrap();
    let error = node.add("b", &other, Value::Null).err().unwrap();
    assert!(error.msg.ends_with("vlanId: another link has this VLAN of wire0"), "{error}");
    assert_eq!(error.code, ErrorCode::PLUGIN);
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    node.add("b", &other, Value::Null).unwrap();
    // The master goes, and takes the VLAN along.
    node.host.output("ip", &["link", "del", "wire0"]);
    node.del("b", Some(&other.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
    let error = node.add("a", &pod, Value::Null).err().unwrap();
    assert!(error.msg.ends_with("master: link wire0 does not exist"), "{error}");
}

#[test]
fn check_finds_each_damage() {
    if !kernel_has(Feature::Vlan) {
        return;
    }
    let (node, _world) = on_wire(conf());
    let damage = |expect: &str, commands: &[&[&str]]| {
        let pod = NetNs::new();
        let added = node.add("a", &pod, Value::Null).unwrap();
        commands.iter().for_each(|command| {
            pod.output(command[0], &command[1..]);
        });
        let error = node.check("a", &pod, Value::Null, &added).unwrap_err();
        assert!(error.to_string().contains(expect), "{error} should say {expect:?}");
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
    };
    damage("lacks the address 10.20.0.5/24", &[&["ip", "addr", "flush", "dev", "eth0"]]);
    damage("not a vlan link that is up", &[&["ip", "link", "set", "eth0", "down"]]);
    damage(
        "not on top of wire0",
        &[
            &["ip", "link", "del", "eth0"],
            &["ip", "link", "add", "below", "type", "dummy"],
            &["ip", "link", "set", "below", "up"],
            &["ip", "link", "add", "eth0", "link", "below", "type", "vlan", "id", "20"],
            &["ip", "link", "set", "eth0", "up"],
        ],
    );
}

#[test]
fn a_link_in_the_container_can_be_the_master() {
    if !kernel_has(Feature::Vlan) {
        return;
    }
    let mut conf = conf();
    conf["linkInContainer"] = true.into();
    let node = Node::with(conf);
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&pod, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    let added = node.add("a", &pod, Value::Null).unwrap();
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    assert!(!pod.output("ip", &["-o", "link"]).contains("eth0"));
    assert_eq!(node.leftovers(), [""; 0]);
}

//! ipvlan.

use serde_json::{Value, json};

use crate::node::{NetNs, Node};
use crate::wire::{Feature, connect, kernel_has, serve, wire};

fn conf(mode: &str) -> Value {
    json!({"type": "ipvlan", "master": "wire0", "mode": mode, "mtu": 1400,
        "ipam": {"type": "host-local", "subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10"}})
}

#[test]
fn pods_share_the_parents_address() {
    if !kernel_has(Feature::IpVlan) {
        return;
    }
    for mode in ["l2", "l3", "l3s"] {
        let (node, world) = (Node::with(conf(mode)), NetNs::new());
        wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
        let (a, b) = (NetNs::new(), NetNs::new());
        let first = node.add("a", &a, Value::Null).unwrap();
        node.add("b", &b, Value::Null).unwrap();
        serve(&b, "0.0.0.0:1000");
        assert_eq!(connect(&a, "192.0.2.11:1000"), Ok("192.0.2.10".to_owned()), "{mode}");
        let shown = a.output("ip", &["-d", "link", "show", "eth0"]);
        assert!(shown.contains(&format!("ipvlan  mode {mode}")) && shown.contains("mtu 1400"), "{shown}");
        node.check("a", &a, Value::Null, &first).unwrap();
        let other = if mode == "l2" { "l3" } else { "l2" };
        a.output("ip", &["link", "set", "eth0", "type", "ipvlan", "mode", other]);
        let error = node.check("a", &a, Value::Null, &first).unwrap_err();
        assert!(error.msg.ends_with("the mode of eth0 differs from the configuration"), "{error}");
        node.del("a", Some(&a.path)).unwrap();
        node.del("b", Some(&b.path)).unwrap();
        assert!(!a.output("ip", &["-o", "link"]).contains("eth0"));
        assert_eq!(node.leftovers(), [""; 0]);
    }
}

#[test]
fn chained_it_takes_the_addresses_it_is_given() {
    if !kernel_has(Feature::IpVlan) {
        return;
    }
    let (node, world) = (Node::with(json!({"type": "ipvlan"})), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    let pod = NetNs::new();
    let error = node.add("a", &pod, Value::Null).err().unwrap();
    assert!(error.msg.ends_with("ipam: missing"), "{error}");
    let before = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "wire0"}],
        "ips": [{"address": "192.0.2.77/24", "interface": 0}]});
    let target = crate::node::attachment("a");
    let more = proto::cni::runtime::Additions { prev_result: Some(&before), ..Default::default() };
    let added = node.call(0, proto::cni::Verb::Add, (&target, Some(&pod.path)), more).unwrap().unwrap();
    assert_eq!((added.ip4().to_string().as_str(), added.result.ips[0].interface), ("192.0.2.77", Some(1)));
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

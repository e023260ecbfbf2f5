//! portmap: which source address a pod sees.

use serde_json::{Value, json};

use super::node::{NetNs, Node, privileged};
use super::wire::{connect, serve, wire};

#[test]
fn sources_are_rewritten_as_asked() {
    if !privileged() {
        return;
    }
    let check = |keys: Value, from_outside: &str, from_loopback: Result<&str, ()>| {
        let node = Node::new(|json| {
            let plugin = json["plugins"][1].as_object_mut().unwrap();
            plugin.extend(keys.as_object().unwrap().clone());
        });
        let (pod, world) = (NetNs::new(), NetNs::new());
        wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
        let ports = json!([{"hostPort": 1000, "containerPort": 80}]);
        let added = node.add("a", &pod, ports.clone()).unwrap();
        serve(&pod, "0.0.0.0:80");
        assert_eq!(connect(&world, "192.0.2.1:1000"), Ok(from_outside.to_owned()), "{keys}");
        let found = connect(&node.host, "127.0.0.1:1000").map_err(drop);
        assert_eq!(found, from_loopback.map(str::to_owned), "{keys}");
        node.check("a", &pod, ports, &added).unwrap();
        node.del("a", None).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
    };
    let (outside, bridge) = ("192.0.2.2", "10.211.64.1");
    check(json!({}), outside, Ok(bridge));
    check(json!({"masqAll": true}), bridge, Ok(bridge));
    check(json!({"snat": false}), outside, Err(()));
    // Nothing is marked: what the marks arrange is done.
    check(json!({"markMasqBit": 7}), outside, Ok(bridge));
    check(json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}), outside, Ok(bridge));
}

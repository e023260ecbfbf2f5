//! STATUS where pods are cut off.

use proto::cni::{ErrorCode, Verb};
use serde_json::{Value, json};

use super::macvlan::{conf, on_wire};
use super::node::{NetNs, Node, privileged};

fn check(node: &Node, expect: Result<(), (ErrorCode, &str)>) {
    let found = node.whole(Verb::Status, None);
    let told = found.as_ref().map(drop).map_err(|error| error.code);
    assert_eq!(told, expect.map_err(|(code, _)| code), "{found:?}");
    if let (Err(error), Err((_, end))) = (found, expect) {
        assert!(error.msg.ends_with(end), "{error}");
    }
}

#[test]
fn pods_on_a_bridge_that_is_down_are_cut_off() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let pod = NetNs::new();
    node.add("a", &pod, Value::Null).unwrap();
    let set = |state: &str| node.host.output("ip", &["link", "set", "berth0", state]);
    check(&node, Ok(()));
    set("down");
    check(&node, Err((ErrorCode::LIMITED_CONNECTIVITY, "bridge berth0 is down, and links are on it")));
    set("up");
    check(&node, Ok(()));
    node.del("a", Some(&pod.path)).unwrap();
    set("down");
    check(&node, Ok(()));
}

#[test]
fn pods_on_a_master_that_is_down_are_cut_off() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(conf());
    let pod = NetNs::new();
    node.add("a", &pod, Value::Null).unwrap();
    check(&node, Ok(()));
    node.host.output("ip", &["link", "set", "wire0", "down"]);
    check(&node, Err((ErrorCode::LIMITED_CONNECTIVITY, "master: link wire0 is down")));
    node.del("a", Some(&pod.path)).unwrap();
    check(&node, Err((ErrorCode::NOT_AVAILABLE, "master: link wire0 is down")));
    node.host.output("ip", &["link", "set", "wire0", "up"]);
    check(&node, Ok(()));
    node.add("a", &pod, Value::Null).unwrap();
    node.host.output("ip", &["link", "del", "wire0"]);
    check(&node, Err((ErrorCode::LIMITED_CONNECTIVITY, "master: link wire0 does not exist")));
    node.del("a", Some(&pod.path)).unwrap();
    check(&node, Err((ErrorCode::NOT_AVAILABLE, "master: link wire0 does not exist")));
}

/// A whole pool of one address.
#[test]
fn a_pool_without_addresses_is_told() {
    if !privileged() {
        return;
    }
    let node = Node::with(json!({"type": "bridge", "bridge": "br0",
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.7", "rangeEnd": "10.9.0.7"}}));
    let pod = NetNs::new();
    check(&node, Ok(()));
    node.add("a", &pod, Value::Null).unwrap();
    let found = node.whole(Verb::Status, None).unwrap_err();
    assert_eq!(found.code, ErrorCode::NOT_AVAILABLE, "{found}");
}

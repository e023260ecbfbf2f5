//! An address that another pod had before.

use serde_json::{Value, json};

use super::bridge::dual_stack;
use super::node::{Added, NetNs, Node, privileged};
use super::wire::{connect, serve};

/// Neither the host nor another pod goes on sending to who had the address before.
#[test]
fn a_pod_is_reached_at_an_address_that_another_had() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| {
        dual_stack(json);
        json["plugins"][0]["capabilities"]["ips"] = true.into();
    });
    let (first, second) = (NetNs::new(), NetNs::new());
    let holds = |added: Added| {
        let addresses: Vec<_> = added.result.ips.iter().map(|ip| ip.address.addr().to_string()).collect();
        assert_eq!(addresses, ["10.211.64.3", "fd00:64::3"]);
    };
    node.add("a", &first, Value::Null).unwrap();
    holds(node.add("before", &second, Value::Null).unwrap());
    node.del("before", Some(&second.path)).unwrap();
    for (netns, link) in [(&node.host, "berth0"), (&first, "eth0")] {
        for address in ["10.211.64.3", "fd00:64::3"] {
            let known = ["lladdr", "02:00:00:00:00:99", "nud", "stale", "dev", link];
            netns.output("ip", &[&["neigh", "replace", address][..], &known].concat());
        }
    }
    holds(node.add_with("b", &second, json!({"ips": ["10.211.64.3", "fd00:64::3"]})).unwrap());
    serve(&second, "[::]:80");
    assert_eq!(connect(&node.host, "10.211.64.3:80"), Ok("::ffff:10.211.64.1".to_owned()));
    assert_eq!(connect(&node.host, "[fd00:64::3]:80"), Ok("fd00:64::1".to_owned()));
    assert_eq!(connect(&first, "10.211.64.3:80"), Ok("::ffff:10.211.64.2".to_owned()));
    assert_eq!(connect(&first, "[fd00:64::3]:80"), Ok("fd00:64::2".to_owned()));
}

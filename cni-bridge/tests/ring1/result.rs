//! What CHECK and chained plugins make of a result: its routes, interfaces and sandboxes.

use proto::cni::Verb;
use proto::cni::runtime::Additions;
use serde_json::{Value, json};

use super::bridge::{dual_stack, only_bridge};
use super::node::{NetNs, Node, attachment, privileged};

#[test]
fn routes_are_as_the_result_says() {
    if !privileged() {
        return;
    }
    let node = |version: &str, routes: Value| {
        Node::new(|json| {
            dual_stack(json);
            json["cniVersion"] = version.into();
            json["plugins"][0]["ipam"]["routes"] = routes;
        })
    };
    let two = json!([
        {"dst": "10.99.0.0/16", "gw": "10.211.64.200"}, {"dst": "10.99.0.0/16", "gw": "10.211.64.201"},
        {"dst": "fd00:99::/64", "gw": "fd00:64:0:0:1::7"}, {"dst": "fd00:99::/64", "gw": "fd00:64:0:0:1::8"},
        {"dst": "10.98.0.0/16", "priority": 50, "mtu": 1300, "advmss": 1200},
        {"dst": "10.97.0.0/16", "table": 100}, {"dst": "10.96.0.0/16", "scope": 253}]);
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let (node, pod) = (node(version, two.clone()), NetNs::new());
        let added = node.add("a", &pod, Value::Null).unwrap();
        node.check("a", &pod, Value::Null, &added).unwrap();
    }
    let node = node("1.1.0", two);
    let damage = |lost: &str, change: &str| {
        let pod = NetNs::new();
        let added = node.add("a", &pod, Value::Null).unwrap();
        node.check("a", &pod, Value::Null, &added).unwrap();
        pod.output("sh", &["-c", change]);
        let error = node.check("a", &pod, Value::Null, &added).unwrap_err();
        assert!(error.msg.ends_with(&format!("eth0 lacks the route to {lost}")), "{change}: {error}");
        node.del("a", Some(&pod.path)).unwrap();
    };
    damage("10.99.0.0/16", "ip route del 10.99.0.0/16 via 10.211.64.201");
    damage("fd00:99::/64", "ip -6 route del fd00:99::/64 via fd00:64:0:0:1::7");
    let other = |metric: u32, mtu: u32| {
        format!(
            "ip route del 10.98.0.0/16; ip route add 10.98.0.0/16 via 10.211.64.1 metric {metric} mtu {mtu} advmss 1200"
        )
    };
    damage("10.98.0.0/16", &other(51, 1300));
    damage("10.98.0.0/16", &other(50, 1301));
    damage("10.97.0.0/16", "ip route del 10.97.0.0/16 table 100; ip route add 10.97.0.0/16 via 10.211.64.1");
    damage("10.96.0.0/16", "ip route del 10.96.0.0/16; ip route add 10.96.0.0/16 via 10.211.64.1");
}

#[test]
fn check_sees_bridge_and_sandbox() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| {
        only_bridge(json);
        json["plugins"][0]["mtu"] = 1400.into();
        json["plugins"][0]["hairpinMode"] = false.into();
        json["plugins"][0]["promiscMode"] = true.into();
    });
    let (pod, other) = (NetNs::new(), NetNs::new());
    let added = node.add("a", &pod, Value::Null).unwrap();
    let damage = |expect: &str, change: &[&str], back: &[&str]| {
        node.check("a", &pod, Value::Null, &added).unwrap();
        node.host.output("ip", change);
        let error = node.check("a", &pod, Value::Null, &added).unwrap_err();
        assert!(error.msg.ends_with(expect), "{error}");
        node.host.output("ip", back);
    };
    damage(
        "does not receive every frame any more",
        &["link", "set", "berth0", "promisc", "off"],
        &["link", "set", "berth0", "promisc", "on"],
    );
    damage(
        "link berth0 has MTU 1280, not 1400",
        &["link", "set", "berth0", "mtu", "1280"],
        &["link", "set", "berth0", "mtu", "1400"],
    );
    let error = node.check("a", &other, Value::Null, &added).unwrap_err();
    let expect = format!("prevResult.interfaces[2] is in {}", pod.path.display());
    assert!(error.msg.contains(&expect), "{error}");
}

#[test]
fn the_interface_that_is_asked_about_gets_the_ports() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    let mut other = added.json.clone();
    other["interfaces"].as_array_mut().unwrap().push(json!({"name": "net1", "sandbox": pod.path}));
    other["ips"].as_array_mut().unwrap().insert(0, json!({"address": "10.99.0.2/24", "interface": 3}));
    let (target, capabilities) =
        (attachment("a"), json!({"portMappings": json!([{"hostPort": 12000, "containerPort": 80}])}));
    let more = Additions {
        capability_args: capabilities.as_object(),
        prev_result: Some(&other),
        valid_attachments: None,
    };
    node.call(1, Verb::Add, (&target, Some(&pod.path)), more).unwrap();
    let rules = node.host.output("nft", &["list", "map", "inet", "berth_portmap", "ports4"]);
    assert!(rules.contains("10.211.64.2 . ") && !rules.contains("10.99.0.2"), "{rules}");
}

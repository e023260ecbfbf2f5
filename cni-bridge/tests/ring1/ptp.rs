//! ptp.

use proto::cni::{ErrorCode, Verb};
use serde_json::{Value, json};

use super::node::{NetNs, Node, attachment, privileged};
use super::wire::{connect, serve, wire};

fn conf() -> Value {
    json!({"type": "ptp", "ipMasq": true, "mtu": 1400, "dns": {"nameservers": ["10.9.0.53"]},
        "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}})
}

#[test]
fn pods_reach_host_world_and_each_other() {
    if !privileged() {
        return;
    }
    let (node, world) = (Node::with(conf()), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    let (a, b) = (NetNs::new(), NetNs::new());
    let first = node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    assert_eq!(first.json["interfaces"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&first.json["ips"][0]["interface"], &first.json["dns"]["nameservers"][0]),
        (&json!(1), &json!("10.9.0.53"))
    );
    assert_eq!(first.result.interfaces[1].mtu, 1400);
    assert_eq!(a.output("cat", &["/proc/sys/net/ipv4/conf/eth0/arp_notify"]), "1\n");
    for netns in [&node.host, &b, &world] {
        serve(netns, "0.0.0.0:1000");
        serve(netns, "[::]:1001");
    }
    let check = |from: &NetNs, to: &str, expect: &str| {
        assert_eq!(connect(from, to), Ok(expect.to_owned()), "to {to}");
    };
    check(&a, "10.9.0.1:1000", "10.9.0.2");
    check(&a, "10.9.0.3:1000", "10.9.0.2");
    check(&a, "[fd00:9::3]:1001", "fd00:9::2");
    check(&a, "192.0.2.2:1000", "192.0.2.1");
    check(&node.host, "10.9.0.3:1000", "10.9.0.1");
    node.check("a", &a, Value::Null, &first).unwrap();
    node.whole(Verb::Status, None).unwrap();
    node.del("a", Some(&a.path)).unwrap();
    assert!(!a.output("ip", &["-o", "link"]).contains("eth0"));
    node.del("a", None).unwrap();
    node.whole(Verb::Gc, Some(&[attachment("b")])).unwrap();
    check(&node.host, "10.9.0.3:1000", "10.9.0.1");
    node.whole(Verb::Gc, Some(&[])).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn check_finds_each_damage() {
    if !privileged() {
        return;
    }
    let node = Node::with(conf());
    let damage = |expect: &str, host: &[&str], inside: &[&str]| {
        let pod = NetNs::new();
        let added = node.add("a", &pod, Value::Null).unwrap();
        let veth = added.result.interfaces[0].name.as_str();
        let host: Vec<&str> = host.iter().map(|word| if *word == "VETH" { veth } else { *word }).collect();
        for (netns, command) in [(&node.host, &host[..]), (&pod, inside)] {
            if let Some((program, args)) = command.split_first() {
                netns.output(program, args);
            }
        }
        let error = node.check("a", &pod, Value::Null, &added).unwrap_err();
        assert!(error.to_string().contains(expect), "{error} should say {expect:?}");
        assert_eq!(error.code, ErrorCode::PLUGIN);
        node.del("a", None).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
    };
    damage("is missing", &["ip", "link", "del", "VETH"], &[]);
    damage("is down", &["ip", "link", "set", "VETH", "down"], &[]);
    damage(
        "lacks the gateway address 10.9.0.1/32",
        &["ip", "addr", "del", "10.9.0.1/32", "dev", "VETH"],
        &[],
    );
    damage("lacks the route to 10.9.0.", &["ip", "-4", "route", "flush", "dev", "VETH"], &[]);
    damage("forwarding is off", &["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"], &[]);
    damage("not a veth link that is up", &[], &["ip", "link", "set", "eth0", "down"]);
    damage("lacks the address 10.9.0.", &[], &["ip", "-4", "addr", "flush", "dev", "eth0"]);
    damage("lacks the route to 0.0.0.0/0", &[], &["ip", "route", "del", "default"]);
    damage("lacks the route to 10.9.0.0/24", &[], &["ip", "route", "del", "10.9.0.0/24"]);
    damage(
        "lacks the route to fd00:9::1/128",
        &[],
        &["ip", "-6", "route", "del", "fd00:9::1/128", "dev", "eth0"],
    );
    damage("has MTU 1300", &[], &["ip", "link", "set", "eth0", "mtu", "1300"]);
    damage("masquerade", &["nft", "flush", "ruleset"], &[]);
}

#[test]
fn a_single_address_with_a_gateway_elsewhere_is_enough() {
    if !privileged() {
        return;
    }
    let with = |ipam: Value| Node::with(json!({"type": "ptp", "ipam": ipam}));
    let routes = json!([{"dst": "0.0.0.0/0"}]);
    let check = |ipam: Value, address: &str| {
        let (node, pod) = (with(ipam), NetNs::new());
        let added = node.add("a", &pod, Value::Null).unwrap();
        assert_eq!(added.ip4().to_string(), address);
        let gateway = added.result.ips[0].gateway.unwrap();
        serve(&node.host, "0.0.0.0:1000");
        assert_eq!(connect(&pod, &format!("{gateway}:1000")), Ok(address.to_owned()));
        node.check("a", &pod, Value::Null, &added).unwrap();
    };
    check(
        json!({"type": "host-local", "subnet": "10.9.0.7/32", "gateway": "169.254.1.1", "routes": routes}),
        "10.9.0.7",
    );
    check(json!({"type": "host-local", "subnet": "10.9.0.6/31", "routes": routes}), "10.9.0.7");
    check(
        json!({"type": "host-local", "subnet": "10.9.1.0/24", "gateway": "169.254.1.1", "routes": routes}),
        "10.9.1.1",
    );
    let fixed = json!([{"address": "10.9.0.8/32", "gateway": "169.254.1.1"}]);
    check(json!({"type": "static", "addresses": fixed, "routes": routes}), "10.9.0.8");
    let pod = NetNs::new();
    let error = with(json!({"type": "host-local", "subnet": "10.9.0.7/32"}))
        .add("a", &pod, Value::Null)
        .err()
        .unwrap();
    assert!(error.msg.ends_with("ipam: 10.9.0.7/32 has no gateway, which ptp needs"), "{error}");
}

#[test]
fn rules_for_a_subnet_go_with_its_last_pod() {
    if !privileged() {
        return;
    }
    let with = |v4: &str, v6: &str| {
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": v4}], [{"subnet": v6}]]});
        json!({"type": "ptp", "ipMasq": true, "ipam": ipam})
    };
    let node = Node::with(with("10.9.1.0/24", "fd00:9::/64"));
    let pods: Vec<NetNs> = (0..3).map(|_| NetNs::new()).collect();
    node.add("a", &pods[0], Value::Null).unwrap();
    let (node, first) = node.beside("other", with("10.9.2.0/24", "fd00:a::/64"));
    node.add("b", &pods[1], Value::Null).unwrap();
    node.add("c", &pods[2], Value::Null).unwrap();
    let told = |of: &str| {
        node.host.output("nft", &["list", "table", "inet", "berth_masquerade"]).matches(of).count()
    };
    let before = [told("10.9.2.0/24"), told("fd00:a::/64"), told("10.9.1.0/24"), told("fd00:9::/64")];
    assert!(before.iter().all(|count| *count > 0), "{before:?}");
    node.del("b", Some(&pods[1].path)).unwrap();
    assert_eq!(told("inside 10.9.2.0/24"), 1, "another pod is in the subnet");
    node.del("c", Some(&pods[2].path)).unwrap();
    let left = [told("10.9.2.0"), told("fd00:a:"), told("fd00-a-"), told("10.9.1.0/24")];
    assert_eq!(left, [0, 0, 0, before[2]]);
    // What went comes again.
    let added = node.add("b", &pods[1], Value::Null).unwrap();
    node.check("b", &pods[1], Value::Null, &added).unwrap();
    let node = Node { list: first, ..node };
    node.del("a", Some(&pods[0].path)).unwrap();
}

//! macvlan, on a wire to a namespace that plays the outside.

use proto::cni::{ErrorCode, Verb};
use serde_json::{Value, json};

use super::node::{NetNs, Node, privileged};
use super::wire::{connect, is_cut_off, serve, wire};

pub const NOTHING: [&str; 0] = [];

pub fn conf() -> Value {
    json!({"type": "macvlan", "master": "wire0", "ipam": {"type": "host-local",
        "ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "gateway": "192.0.2.2"}],
                   [{"subnet": "fd00:2::/64", "rangeStart": "fd00:2::10"}]],
        "routes": [{"dst": "0.0.0.0/0"}]}})
}

pub fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut conf = conf();
    change(&mut conf);
    conf
}

/// A node on a wire to the outside.
pub fn on_wire(plugin: Value) -> (Node, NetNs) {
    let (node, world) = (Node::with(plugin), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    (node, world)
}

pub fn no_link(pod: &NetNs, name: &str) -> bool {
    !pod.output("ip", &["-o", "link"]).contains(&format!(" {name}"))
}

#[test]
fn pods_are_on_the_wire_beside_the_host() {
    if !privileged() {
        return;
    }
    let (node, world) = on_wire(conf());
    let (a, b) = (NetNs::new(), NetNs::new());
    let first = node.add("a", &a, Value::Null).unwrap();
    let second = node.add("b", &b, Value::Null).unwrap();
    assert_eq!((first.ip4().to_string().as_str(), first.result.interfaces.len()), ("192.0.2.10", 1));
    assert_eq!(first.result.interfaces[0].sandbox, a.path.to_str().unwrap());
    assert_eq!(first.json["ips"][0]["interface"], 0);
    serve(&world, "0.0.0.0:1000");
    serve(&b, "0.0.0.0:1000");
    serve(&b, "[::]:1001");
    assert_eq!(connect(&a, "192.0.2.2:1000"), Ok("192.0.2.10".to_owned()));
    assert_eq!(connect(&a, "192.0.2.11:1000"), Ok("192.0.2.10".to_owned()));
    assert_eq!(connect(&a, "[fd00:2::11]:1001"), Ok("fd00:2::10".to_owned()));
    assert!(is_cut_off(&node.host, "192.0.2.11:1000"), "a parent and what is on it never talk");
    let sysctl = |key: &str| a.output("cat", &[&format!("/proc/sys/net/{key}")]).trim().to_owned();
    assert_eq!(
        (sysctl("ipv4/conf/eth0/arp_notify"), sysctl("ipv6/conf/eth0/ndisc_notify")),
        ("1".into(), "1".into())
    );
    for (name, pod, added) in [("a", &a, &first), ("b", &b, &second)] {
        node.check(name, pod, Value::Null, added).unwrap();
        node.del(name, Some(&pod.path)).unwrap();
        assert!(no_link(pod, "eth0"));
    }
    assert_eq!(node.leftovers(), NOTHING);
}

#[test]
fn what_the_wire_says_counts() {
    if !privileged() {
        return;
    }
    let (node, world) = on_wire(conf());
    let pod = NetNs::new();
    node.add("a", &pod, Value::Null).unwrap();
    let sysctl = |key: &str| pod.output("cat", &[&format!("/proc/sys/net/ipv6/conf/eth0/{key}")]);
    assert_eq!((sysctl("accept_ra"), sysctl("accept_dad")), ("1\n".into(), "1\n".into()));
    assert_eq!(sysctl("keep_addr_on_down"), "1\n");
    let shown = pod.output("ip", &["-6", "addr", "show", "dev", "eth0", "scope", "global"]);
    assert!(!shown.contains("tentative") && !shown.contains("nodad"), "{shown}");
    // Somebody outside has the address that the next pod would get.
    world.output("ip", &["addr", "add", "fd00:2::11/64", "dev", "wire1", "nodad"]);
    let other = NetNs::new();
    let error = node.add("b", &other, Value::Null).err().unwrap();
    assert!(error.msg.ends_with("another host has the address fd00:2::11"), "{error}");
    node.del("a", Some(&pod.path)).unwrap();
    assert_eq!(node.leftovers(), NOTHING);
}

#[test]
fn ipv6_may_have_been_turned_off() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(conf());
    let pod = NetNs::new();
    pod.output(
        "sh",
        &["-c", "for name in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$name/disable_ipv6; done"],
    );
    node.add("a", &pod, Value::Null).unwrap();
    for name in ["lo", "eth0"] {
        assert_eq!(pod.output("cat", &[&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")]), "0\n");
    }
}

#[test]
fn modes_are_the_kernels() {
    if !privileged() {
        return;
    }
    for mode in ["bridge", "private", "vepa", "passthru"] {
        let (node, _world) = on_wire(changed(|conf| {
            conf["mode"] = mode.into();
            conf["mtu"] = 1400.into();
            conf["bcqueuelen"] = 77.into();
            if mode != "passthru" {
                conf["mac"] = "02:00:00:00:00:42".into();
            }
        }));
        let pod = NetNs::new();
        let added = node.add("a", &pod, Value::Null).unwrap();
        let shown = pod.output("ip", &["-d", "link", "show", "eth0"]);
        assert!(shown.contains(&format!("macvlan mode {mode}")) && shown.contains("mtu 1400"), "{shown}");
        assert!(shown.contains("bcqueuelen 77"), "{shown}");
        assert!(mode == "passthru" || shown.contains("02:00:00:00:00:42"), "{shown}");
        node.check("a", &pod, Value::Null, &added).unwrap();
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), NOTHING);
    }
}

#[test]
fn private_pods_do_not_reach_each_other() {
    if !privileged() {
        return;
    }
    let (node, world) = on_wire(changed(|conf| conf["mode"] = "private".into()));
    let (a, b) = (NetNs::new(), NetNs::new());
    node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    serve(&b, "0.0.0.0:1000");
    serve(&world, "0.0.0.0:1000");
    assert_eq!(connect(&a, "192.0.2.2:1000"), Ok("192.0.2.10".to_owned()));
    assert!(is_cut_off(&a, "192.0.2.11:1000"));
}

#[test]
fn without_addresses_it_is_a_wire() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(json!({"type": "macvlan", "master": "wire0"}));
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    assert_eq!((added.result.interfaces.len(), added.result.ips.len()), (1, 0));
    assert!(pod.output("ip", &["link", "show", "eth0"]).contains("state UP"));
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.del("a", None).unwrap();
    assert!(no_link(&pod, "eth0"), "the ledger knows the namespace where the runtime does not");
    assert_eq!(node.leftovers(), NOTHING);
}

#[test]
fn a_shim_lets_host_and_pods_talk() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(changed(|conf| conf["hostShim"] = json!(["192.0.2.250", "fd00:2::250"])));
    let (a, b) = (NetNs::new(), NetNs::new());
    let first = node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    serve(&a, "0.0.0.0:1000");
    serve(&a, "[::]:1001");
    serve(&node.host, "192.0.2.250:1000");
    assert_eq!(connect(&node.host, "192.0.2.10:1000"), Ok("192.0.2.250".to_owned()));
    assert_eq!(connect(&node.host, "[fd00:2::10]:1001"), Ok("fd00:2::250".to_owned()));
    assert_eq!(connect(&b, "192.0.2.250:1000"), Ok("192.0.2.11".to_owned()));
    node.check("a", &a, Value::Null, &first).unwrap();
    let shim = node.leftovers().into_iter().find(|name| name.starts_with("shim")).unwrap();
    node.host.output("ip", &["route", "del", "192.0.2.10/32", "dev", &shim]);
    let error = node.check("a", &a, Value::Null, &first).unwrap_err();
    assert!(error.msg.contains("lacks the route to 192.0.2.10/32"), "{error}");
    node.del("a", Some(&a.path)).unwrap();
    node.del("b", Some(&b.path)).unwrap();
    assert_eq!(node.leftovers(), NOTHING);
}

#[test]
fn an_internal_network_has_pods_only() {
    if !privileged() {
        return;
    }
    let node = Node::with(json!({"type": "macvlan", "internal": true,
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"}}));
    let (a, b) = (NetNs::new(), NetNs::new());
    let first = node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    serve(&b, "0.0.0.0:1000");
    assert_eq!(connect(&a, "10.7.0.3:1000"), Ok("10.7.0.2".to_owned()));
    node.check("a", &a, Value::Null, &first).unwrap();
    node.del("a", Some(&a.path)).unwrap();
    assert!(node.leftovers().iter().any(|name| name.starts_with("void")), "the other still uses the parent");
    // Its namespace goes without DEL: GC finds out from the runtime.
    drop(b);
    node.whole(Verb::Gc, Some(&[])).unwrap();
    assert_eq!(node.leftovers(), NOTHING);
}

#[test]
fn the_default_route_names_the_parent() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(changed(|conf| conf["master"] = Value::Null));
    let pod = NetNs::new();
    let error = node.add("a", &pod, Value::Null).err().unwrap();
    assert!(error.msg.ends_with(": master: missing, and the host has no default route"), "{error}");
    assert_eq!(error.code, ErrorCode::INVALID_NETWORK_CONFIG);
    assert_eq!(node.whole(Verb::Status, None).unwrap_err().code, ErrorCode::NOT_AVAILABLE);
    node.host.output("ip", &["route", "add", "default", "via", "192.0.2.2"]);
    node.whole(Verb::Status, None).unwrap();
    let added = node.add("a", &pod, Value::Null).unwrap();
    node.check("a", &pod, Value::Null, &added).unwrap();
}

#[test]
fn the_parent_gets_every_frame_while_it_is_used() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(changed(|conf| conf["promiscMode"] = true.into()));
    let is_promiscuous = || node.host.output("ip", &["link", "show", "wire0"]).contains("PROMISC");
    let (a, b) = (NetNs::new(), NetNs::new());
    node.add("a", &a, Value::Null).unwrap();
    let added = node.add("b", &b, Value::Null).unwrap();
    node.del("a", Some(&a.path)).unwrap();
    assert!(is_promiscuous());
    node.check("b", &b, Value::Null, &added).unwrap();
    node.host.output("ip", &["link", "set", "wire0", "promisc", "off"]);
    let error = node.check("b", &b, Value::Null, &added).unwrap_err();
    assert!(error.msg.ends_with("link wire0 does not receive every frame any more"), "{error}");
    node.host.output("ip", &["link", "set", "wire0", "promisc", "on"]);
    node.del("b", Some(&b.path)).unwrap();
    assert!(!is_promiscuous());
    assert_eq!(node.leftovers(), NOTHING);
}

#[test]
fn a_link_in_the_container_can_be_the_parent() {
    if !privileged() {
        return;
    }
    let node = Node::with(changed(|conf| conf["linkInContainer"] = true.into()));
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&pod, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    let added = node.add("a", &pod, Value::Null).unwrap();
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    assert!(no_link(&pod, "eth0") && !no_link(&pod, "wire0"));
    assert_eq!(node.leftovers(), NOTHING);
}

//! macvlan, on a wire to a namespace that plays the outside.

use std::path::Path;
use std::time::Duration;

use proto::cni::runtime::Additions;
use proto::cni::{ErrorCode, Verb};
use serde_json::{Value, json};

use super::node::{
    Feature, NetNs, Node, attachment, connect, is_cut_off, kernel_has, privileged, serve, wire,
};

const NOTHING: [&str; 0] = [];

fn conf() -> Value {
    json!({"type": "macvlan", "master": "wire0", "ipam": {"type": "host-local",
        "ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "gateway": "192.0.2.2"}],
                   [{"subnet": "fd00:2::/64", "rangeStart": "fd00:2::10"}]],
        "routes": [{"dst": "0.0.0.0/0"}]}})
}

fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut conf = conf();
    change(&mut conf);
    conf
}

/// A node on a wire to the outside.
fn on_wire(plugin: Value) -> (Node, NetNs) {
    let (node, world) = (Node::with(plugin), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    (node, world)
}

fn no_link(pod: &NetNs, name: &str) -> bool {
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
fn check_finds_each_damage() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(conf());
    let damage = |expect: &str, host: &[&str], inside: &[&str]| {
        let pod = NetNs::new();
        let added = node.add("a", &pod, Value::Null).unwrap();
        node.check("a", &pod, Value::Null, &added).unwrap();
        for (netns, command) in [(&node.host, host), (&pod, inside)] {
            if let Some((program, args)) = command.split_first() {
                netns.output(program, args);
            }
        }
        let error = node.check("a", &pod, Value::Null, &added).unwrap_err();
        assert!(error.to_string().contains(expect), "{error} should say {expect:?}");
        assert_eq!(error.code, ErrorCode::PLUGIN);
        node.host.output("ip", &["link", "set", "wire0", "up"]);
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), NOTHING);
    };
    damage("lacks the address 192.0.2.", &[], &["ip", "-4", "addr", "flush", "dev", "eth0"]);
    damage("lacks the address fd00:2::", &[], &["ip", "-6", "addr", "flush", "dev", "eth0"]);
    damage("lacks the route to 0.0.0.0/0", &[], &["ip", "route", "del", "default"]);
    damage("not a macvlan link that is up", &[], &["ip", "link", "set", "eth0", "down"]);
    damage("has MTU 1300", &[], &["ip", "link", "set", "eth0", "mtu", "1300"]);
    damage("has MAC address", &[], &["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"]);
    damage(
        "the mode of eth0 differs",
        &[],
        &["ip", "link", "set", "eth0", "type", "macvlan", "mode", "vepa"],
    );
    damage("link eth0 is missing", &[], &["ip", "link", "del", "eth0"]);
    damage("link wire0 is down", &["ip", "link", "set", "wire0", "down"], &[]);
    damage(
        "no address is reserved",
        &["sh", "-c", &format!("rm -rf {}/berth", node.dir.path().display())],
        &[],
    );
}

#[test]
fn what_later_plugins_changed_is_accepted() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(conf());
    let pod = NetNs::new();
    let mut added = node.add("a", &pod, Value::Null).unwrap();
    pod.output("ip", &["link", "set", "eth0", "address", "02:00:00:00:00:07", "mtu", "1280"]);
    pod.output("ip", &["link", "set", "eth0", "promisc", "on", "txqueuelen", "9"]);
    added.json["interfaces"][0]["mac"] = "02:00:00:00:00:07".into();
    added.json["interfaces"][0]["mtu"] = 1280.into();
    node.check("a", &pod, Value::Null, &added).unwrap();
}

#[test]
fn del_leaves_nothing_and_touches_nothing_of_others() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(conf());
    let check = |what: &str, del: &dyn Fn(&Node, NetNs)| {
        let pod = NetNs::new();
        node.add("a", &pod, Value::Null).unwrap();
        del(&node, pod);
        assert_eq!(node.leftovers(), NOTHING, "{what}");
        node.del("a", None).unwrap();
    };
    check("namespace there", &|node, pod| {
        node.del("a", Some(&pod.path)).unwrap();
        node.add("a", &pod, Value::Null).unwrap();
        node.del("a", Some(&pod.path)).unwrap();
        node.del("a", Some(&pod.path)).unwrap();
    });
    check("namespace gone", &|node, pod| {
        let path = pod.path.clone();
        drop(pod);
        node.del("a", Some(&path)).unwrap();
    });
    check("path is the host's namespace now", &|node, _pod| node.del("a", Some(&node.host.path)).unwrap());
    check("interface removed by hand", &|node, pod| {
        pod.output("ip", &["link", "del", "eth0"]);
        node.del("a", Some(&pod.path)).unwrap();
    });
    check("path is another namespace now", &|node, _pod| {
        let other = NetNs::new();
        node.host.output("ip", &["link", "add", "eth0", "link", "wire0", "type", "macvlan"]);
        let number = other.path.to_str().unwrap().split('/').nth(4).unwrap().to_owned();
        node.host.output("ip", &["link", "set", "eth0", "netns", &number]);
        node.del("a", Some(&other.path)).unwrap();
        assert!(!no_link(&other, "eth0"), "nothing of another namespace is touched");
    });
    check("another's interface of the name", &|node, pod| {
        let error = node.add("b", &pod, Value::Null).err().unwrap();
        assert!(error.msg.ends_with("the container already has an interface eth0"), "{error}");
        node.del("b", Some(&pod.path)).unwrap();
        assert!(!no_link(&pod, "eth0"));
        node.del("a", Some(&pod.path)).unwrap();
    });
}

#[test]
fn failed_adds_leave_nothing() {
    if !privileged() {
        return;
    }
    let check = |change: &dyn Fn(&mut Value), code: ErrorCode, expect: &str| {
        let (node, _world) = on_wire(changed(change));
        node.host.output("ip", &["tuntap", "add", "dev", "tap0", "mode", "tap"]);
        let pod = NetNs::new();
        let error = node.add("a", &pod, Value::Null).err().unwrap();
        assert!(error.to_string().contains(expect), "{error} should say {expect:?}");
        assert_eq!(error.code, code, "{error}");
        assert_eq!(node.leftovers(), NOTHING, "{expect}");
        assert!(no_link(&pod, "eth0") && no_link(&pod, "temp"), "{expect}");
    };
    let invalid = ErrorCode::INVALID_NETWORK_CONFIG;
    check(&|conf| conf["master"] = "absent".into(), invalid, "master: link absent does not exist");
    check(&|conf| conf["master"] = "tap0".into(), invalid, "master: link tap0 is down");
    check(&|conf| conf["master"] = "wire0.0".into(), invalid, "master: wire0.0: VLAN 0 is not in 1 to 4094");
    check(
        &|conf| conf["master"] = "wire0.4095".into(),
        invalid,
        "master: wire0.4095: VLAN 4095 is not in 1 to 4094",
    );
    check(
        &|conf| conf["master"] = "absent.5".into(),
        invalid,
        "master: absent.5: link absent does not exist",
    );
    check(&|conf| conf["master"] = "wire0.05".into(), invalid, "master: link wire0.05 does not exist");
    check(&|conf| conf["mtu"] = 9000.into(), invalid, "mtu: 9000 is above 1500, the MTU of link wire0");
    check(&|conf| conf["ipam"]["ranges"] = json!([]), invalid, "ipam.ranges: missing");
    check(
        &|conf| conf["ipam"]["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]),
        ErrorCode::PLUGIN,
        "adding a route to 10.9.0.0/16",
    );
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

#[test]
fn gc_keeps_the_valid() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(changed(|conf| conf["hostShim"] = json!(["192.0.2.250"])));
    let pods: Vec<NetNs> = (0..3).map(|_| NetNs::new()).collect();
    let names = ["c0", "c1", "c2"];
    let added: Vec<_> =
        names.iter().zip(&pods).map(|(name, pod)| node.add(name, pod, Value::Null).unwrap()).collect();
    node.whole(Verb::Gc, Some(&[attachment("c1")])).unwrap();
    assert!(no_link(&pods[0], "eth0") && no_link(&pods[2], "eth0"));
    node.check("c1", &pods[1], Value::Null, &added[1]).unwrap();
    node.whole(Verb::Gc, Some(&[])).unwrap();
    assert!(no_link(&pods[1], "eth0"));
    assert_eq!(node.leftovers(), NOTHING);
}

/// Whatever a killed ADD or DEL has done, one DEL undoes, down to a shared shim.
#[test]
fn a_killed_call_is_undone_by_del() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(changed(|conf| {
        conf["hostShim"] = json!(["192.0.2.250"]);
        conf["promiscMode"] = true.into();
    }));
    killed_at_any_time(&node, 40);
}

fn killed_at_any_time(node: &Node, rounds: u64) {
    let target = attachment("a");
    for round in 0..rounds {
        let pod = NetNs::new();
        let verb = if round % 2 == 0 { Verb::Add } else { Verb::Del };
        if verb == Verb::Del {
            node.add("a", &pod, Value::Null).unwrap();
        }
        let mut child = node.start(0, verb, (&target, Some(&pod.path)), Additions::default());
        // Not a wait for something to become true: the instant of death is what is being varied.
        std::thread::sleep(Duration::from_micros(round * 250));
        child.kill().unwrap();
        child.wait().unwrap();
        let netns: Option<&Path> = (round % 3 != 0).then_some(&pod.path);
        node.del("a", netns).unwrap();
        assert_eq!(node.leftovers(), NOTHING, "round {round}");
        node.add("a", &pod, Value::Null).unwrap();
        node.del("a", netns).unwrap();
        assert_eq!(node.leftovers(), NOTHING, "round {round}");
    }
}

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

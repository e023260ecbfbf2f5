//! macvlan: damage, failures, kills, and what others have.

use std::path::Path;
use std::time::Duration;

use proto::cni::runtime::Additions;
use proto::cni::{ErrorCode, NetConfList, Verb};
use serde_json::{Value, json};

use super::macvlan::{NOTHING, changed, conf, no_link, on_wire};
use super::node::{NetNs, Node, attachment, privileged};
use super::wire::{Feature, is_there};

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
    check("made by the reference plugin", &|node, pod| {
        node.del("a", Some(&pod.path)).unwrap();
        let number = pod.path.to_str().unwrap().split('/').nth(4).unwrap().to_owned();
        node.host.output("ip", &["link", "add", "temp0", "link", "wire0", "type", "macvlan"]);
        node.host.output("ip", &["link", "set", "temp0", "netns", &number, "name", "eth0"]);
        node.del("a", Some(&pod.path)).unwrap();
        assert!(no_link(&pod, "eth0"));
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
fn a_parent_that_is_taken_is_told() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(changed(|conf| conf["mode"] = "passthru".into()));
    let (a, b) = (NetNs::new(), NetNs::new());
    node.add("a", &a, Value::Null).unwrap();
    let error = node.add("b", &b, Value::Null).err().unwrap();
    assert!(
        error.msg.ends_with("mode: link wire0 has links on it, and a mode does not go with others"),
        "{error}"
    );
    node.del("a", Some(&a.path)).unwrap();
    node.host.output("ip", &["link", "add", "br0", "type", "bridge"]);
    node.host.output("ip", &["link", "set", "wire0", "master", "br0"]);
    let error = node.add("b", &b, Value::Null).err().unwrap();
    assert!(error.msg.contains("master: link wire0 is a port of something"), "{error}");
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

/// Who counts its users elsewhere would not know when the last one goes.
#[test]
fn a_shared_parent_is_counted_in_one_place() {
    if !privileged() {
        return;
    }
    let conf =
        json!({"type": "macvlan", "internal": true, "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"}});
    let mut node = Node::with(conf);
    let (a, b) = (NetNs::new(), NetNs::new());
    let added = node.add("a", &a, Value::Null).unwrap();
    let list = node.list.clone();
    let elsewhere = node.dir.path().join("elsewhere");
    let mut json: Value = serde_json::from_slice(&list.to_bytes()).unwrap();
    json["plugins"][0]["stateDir"] = elsewhere.to_str().unwrap().into();
    node.list = NetConfList::parse(json.to_string().as_bytes()).unwrap();
    let error = node.add("b", &b, Value::Null).err().unwrap();
    assert_eq!(error.code, ErrorCode::INVALID_NETWORK_CONFIG);
    let (here, there) = (node.dir.path().join("state"), elsewhere.display());
    let expect = format!("are counted elsewhere ({here:?}), not in {there}");
    assert!(error.msg.contains("stateDir: ") && error.msg.ends_with(&expect), "{error}");
    node.del("b", Some(&b.path)).unwrap();
    node.whole(Verb::Gc, Some(&[attachment("a")])).unwrap();
    node.list = list;
    node.check("a", &a, Value::Null, &added).unwrap();
    node.del("a", Some(&a.path)).unwrap();
    assert_eq!(node.leftovers(), NOTHING);
}

/// Networks whose frames have no tag would be one network on the wire.
#[test]
fn a_parent_carries_one_untagged_network() {
    if !privileged() {
        return;
    }
    for (master, by_gc) in [("wire0", false), ("wire0", true), ("br0", false)] {
        let (node, _world) = on_wire(changed(|conf| conf["master"] = master.into()));
        node.host.output("ip", &["link", "add", "br0", "up", "type", "bridge"]);
        let other = changed(|conf| {
            conf["master"] = master.into();
            conf["mode"] = "private".into();
            conf["ipam"]["ranges"] = json!([[{"subnet": "10.7.0.0/24"}]]);
        });
        let (mut node, first) = node.beside("other", other);
        let second = std::mem::replace(&mut node.list, first.clone());
        let (a, b, c) = (NetNs::new(), NetNs::new(), NetNs::new());
        node.add("a", &a, Value::Null).unwrap();
        node.add("b", &b, Value::Null).unwrap();
        let add_other = |node: &mut Node| {
            node.list = second.clone();
            let outcome = node.add("c", &c, Value::Null);
            node.list = first.clone();
            outcome
        };
        let refused = |node: &mut Node| {
            let error = add_other(node).err().unwrap();
            assert_eq!(error.code, ErrorCode::INVALID_NETWORK_CONFIG);
            let expect =
                format!("master: link {master} has pods of network \"berth\", and carries one network");
            assert!(error.msg.contains(&expect), "{error}");
            assert!(no_link(&c, "eth0"));
        };
        refused(&mut node);
        node.del("a", Some(&a.path)).unwrap();
        refused(&mut node);
        match by_gc {
            true => node.whole(Verb::Gc, Some(&[])).unwrap(),
            false => node.del("b", Some(&b.path)).unwrap(),
        }
        let added = add_other(&mut node).unwrap();
        assert!(node.add("a", &a, Value::Null).is_err());
        node.del("a", Some(&a.path)).unwrap();
        assert_eq!(node.leftovers(), ["ledger other@c@eth0".to_owned(), format!("shared {master}")]);
        node.list = second.clone();
        node.check("c", &c, Value::Null, &added).unwrap();
        node.del("c", Some(&c.path)).unwrap();
        assert_eq!(node.leftovers(), NOTHING);
    }
}

/// A network that is gone with its configuration has nobody to collect its garbage.
#[test]
fn a_parent_is_free_of_networks_whose_pods_are_dead() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(conf());
    let (mut node, first) = node.beside("other", changed(|conf| conf["mode"] = "private".into()));
    let second = std::mem::replace(&mut node.list, first);
    let (dead, pod) = (NetNs::new(), NetNs::new());
    node.add("a", &dead, Value::Null).unwrap();
    node.list = second;
    assert!(node.add("b", &pod, Value::Null).is_err());
    drop(dead);
    node.add("b", &pod, Value::Null).unwrap();
    node.del("b", Some(&pod.path)).unwrap();
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

pub fn killed_at_any_time(node: &Node, rounds: u64) {
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
fn many_at_once_share_the_parent() {
    if !privileged() {
        return;
    }
    let node = Node::with(json!({"type": "macvlan", "internal": true, "hostShim": ["10.7.0.250"],
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/24", "rangeEnd": "10.7.0.100"}}));
    let pods: Vec<NetNs> = (0..8).map(|_| NetNs::new()).collect();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for (index, pod) in pods.iter().enumerate() {
                let node = &node;
                scope.spawn(move || {
                    let name = format!("c{index}");
                    let added = node.add(&name, pod, Value::Null).unwrap();
                    let error = node.add(&name, pod, Value::Null).err().unwrap();
                    assert!(error.msg.ends_with("already has an interface eth0"), "{error}");
                    node.check(&name, pod, Value::Null, &added).unwrap();
                    node.del(&name, Some(&pod.path)).unwrap();
                });
            }
        });
        assert_eq!(node.leftovers(), NOTHING);
    }
}

/// Each feature is asked for by somebody; the kernel either has it or the error says what is missing.
#[test]
fn what_the_kernel_lacks_is_named() {
    if !privileged() {
        return;
    }
    let check = |feature: Feature, plugin: Value, expect: &str| {
        let (node, _world) = on_wire(plugin);
        let pod = NetNs::new();
        match node.add("a", &pod, Value::Null) {
            Ok(_) => assert!(is_there(feature), "{feature:?}"),
            Err(error) => {
                assert!(!is_there(feature), "{feature:?}: {error}");
                assert!(error.code == ErrorCode::IO_FAILURE && error.msg.contains(expect), "{error}");
                assert_eq!(node.leftovers(), NOTHING, "{feature:?}");
            }
        }
    };
    let ipam = json!({"type": "static", "addresses": [{"address": "10.6.0.5/24"}]});
    let vlan = json!({"type": "vlan", "master": "wire0", "vlanId": 5, "ipam": ipam});
    check(Feature::Vlan, vlan, "module 8021q");
    check(Feature::Vlan, changed(|conf| conf["master"] = "wire0.5".into()), "module 8021q");
    let ipvlan = json!({"type": "ipvlan", "master": "wire0", "ipam": ipam});
    check(Feature::IpVlan, ipvlan, "module ipvlan");
    let bridge = json!({"type": "bridge", "vlan": 5, "isGateway": true, "ipam": ipam});
    check(Feature::BridgeVlans, bridge, "CONFIG_BRIDGE_VLAN_FILTERING");
}

//! bridge with host-local.

use proto::cni::runtime::Additions;
use proto::cni::{ErrorCode, Verb};
use serde_json::{Value, json};

use super::node::{NetNs, Node, attachment, privileged};
use super::wire::{connect, serve, wire};

pub fn only_bridge(json: &mut Value) {
    json["plugins"].as_array_mut().unwrap().truncate(1);
}

pub fn dual_stack(json: &mut Value) {
    only_bridge(json);
    json["plugins"][0]["ipam"]["ranges"] =
        json!([[{"subnet": "10.211.64.0/20"}], [{"subnet": "fd00:64::/64"}]]);
}

#[test]
fn pods_reach_host_and_each_other() {
    if !privileged() {
        return;
    }
    let node = Node::new(dual_stack);
    let (a, b) = (NetNs::new(), NetNs::new());
    let first = node.add("a", &a, Value::Null).unwrap();
    let second = node.add("b", &b, Value::Null).unwrap();
    assert_eq!(first.ip4().to_string(), "10.211.64.2");
    assert_eq!(second.ip6().to_string(), "fd00:64::3");
    serve(&node.host, "0.0.0.0:1000");
    serve(&node.host, "[::]:1001");
    serve(&b, "0.0.0.0:1000");
    serve(&b, "[::]:1001");
    let check = |from: &NetNs, to: &str, expect: &str| {
        assert_eq!(connect(from, to), Ok(expect.to_owned()), "to {to}");
    };
    check(&a, "10.211.64.1:1000", "10.211.64.2");
    check(&a, "10.211.64.3:1000", "10.211.64.2");
    check(&a, "[fd00:64::3]:1001", "fd00:64::2");
    check(&node.host, "10.211.64.3:1000", "10.211.64.1");
    check(&node.host, "[fd00:64::3]:1001", "fd00:64::1");
    node.check("a", &a, Value::Null, &first).unwrap();
    node.check("b", &b, Value::Null, &second).unwrap();
}

#[test]
fn ipv6_is_where_the_host_routes_it() {
    if !privileged() {
        return;
    }
    let addresses = |netns: &NetNs, link: &str| {
        let shown = netns.output("ip", &["-6", "-o", "addr", "show", "dev", link]);
        let found = |start: &str| shown.contains(&format!("inet6 {start}"));
        (found("fe80:"), found("fd00:64:"))
    };
    let check = |configure: fn(&mut Value), expect: (bool, bool)| {
        let node = Node::new(configure);
        let pod = NetNs::new();
        let added = node.add("a", &pod, Value::Null).unwrap();
        assert_eq!(addresses(&pod, "eth0"), expect, "the pod");
        assert_eq!(pod.output("cat", &["/proc/sys/net/ipv4/conf/eth0/arp_notify"]), "1\n");
        let host_end = added.json["interfaces"][1]["name"].as_str().unwrap();
        assert_eq!(addresses(&node.host, host_end), (false, false), "{host_end}");
    };
    check(only_bridge, (false, false));
    check(dual_stack, (true, true));
    let on_the_wire = |json: &mut Value| {
        only_bridge(json);
        for gateway in ["isGateway", "isDefaultGateway"] {
            json["plugins"][0][gateway] = false.into();
        }
    };
    check(on_the_wire, (true, false));
    let asked_for = |json: &mut Value| {
        only_bridge(json);
        let data = json["plugins"][0]["ipam"]["dataDir"].clone();
        let sysctl = json!({"net.ipv6.conf.IFNAME.addr_gen_mode": "0"});
        json["plugins"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "tuning", "sysctl": sysctl, "dataDir": data}));
    };
    check(asked_for, (true, false));
}

#[test]
fn what_leaves_is_masqueraded() {
    if !privileged() {
        return;
    }
    let node = Node::new(only_bridge);
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    node.add("a", &pod, Value::Null).unwrap();
    serve(&world, "0.0.0.0:1000");
    assert_eq!(connect(&pod, "192.0.2.2:1000"), Ok("192.0.2.1".to_owned()));
}

#[test]
fn the_result_describes_three_interfaces() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| {
        only_bridge(json);
        json["plugins"][0]["mtu"] = 1400.into();
        json["plugins"][0]["capabilities"] = json!({"mac": true});
    });
    let pod = NetNs::new();
    let target = attachment("a");
    let capabilities = json!({"mac": "02:00:00:00:00:99"});
    let more = Additions { capability_args: capabilities.as_object(), ..Additions::default() };
    let added = node.call(0, Verb::Add, (&target, Some(&pod.path)), more).unwrap().unwrap();
    let names: Vec<&str> = added.result.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    assert_eq!((names[0], names[2]), ("berth0", "eth0"));
    let eth0 = &added.result.interfaces[2];
    assert_eq!((eth0.mac.as_str(), eth0.mtu), ("02:00:00:00:00:99", 1400));
    assert_eq!(eth0.sandbox, pod.path.to_str().unwrap());
    assert_eq!(added.result.ips[0].interface, Some(2));
    assert_eq!(added.json["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.211.64.1"}]));
    assert!(pod.output("ip", &["link", "show", "eth0"]).contains("mtu 1400"));
}

#[test]
fn del_leaves_nothing_whatever_is_lost() {
    if !privileged() {
        return;
    }
    let node = Node::new(dual_stack);
    let check = |what: &str, del: &dyn Fn(&Node, NetNs)| {
        let pod = NetNs::new();
        node.add("a", &pod, Value::Null).unwrap();
        assert_ne!(node.leftovers(), [""; 0], "{what}");
        del(&node, pod);
        assert_eq!(node.leftovers(), [""; 0], "{what}");
        node.del("a", None).unwrap();
    };
    check("namespace there", &|node, pod| {
        node.del("a", Some(&pod.path)).unwrap();
        assert!(!pod.output("ip", &["-o", "link"]).contains("eth0"));
        // The name is free again at once.
        node.add("a", &pod, Value::Null).unwrap();
        node.del("a", Some(&pod.path)).unwrap();
        node.del("a", Some(&pod.path)).unwrap();
    });
    check("no namespace given", &|node, _pod| node.del("a", None).unwrap());
    check("namespace gone", &|node, pod| {
        let path = pod.path.clone();
        drop(pod);
        node.del("a", Some(&path)).unwrap();
    });
    check("path is a plain file now", &|node, _pod| {
        let file = node.dir.path().join("cni-stale");
        std::fs::write(&file, "").unwrap();
        node.del("a", Some(&file)).unwrap();
        std::fs::remove_file(&file).unwrap();
    });
    check("path is the host's namespace now", &|node, _pod| node.del("a", Some(&node.host.path)).unwrap());
    check("interface removed by hand", &|node, pod| {
        pod.output("ip", &["link", "del", "eth0"]);
        node.del("a", Some(&pod.path)).unwrap();
    });
    check("rules flushed by hand", &|node, pod| {
        node.host.output("nft", &["flush", "ruleset"]);
        node.del("a", Some(&pod.path)).unwrap();
    });
}

#[test]
fn check_finds_each_damage() {
    if !privileged() {
        return;
    }
    let node = Node::new(only_bridge);
    let damage = |expect: &str, host: &[&[&str]], pod_does: &[&[&str]]| {
        let pod = NetNs::new();
        let added = node.add("a", &pod, Value::Null).unwrap();
        node.check("a", &pod, Value::Null, &added).unwrap();
        let veth = added.result.interfaces[1].name.as_str();
        for command in host {
            let words: Vec<&str> =
                command.iter().map(|word| if *word == "VETH" { veth } else { *word }).collect();
            node.host.output(words[0], &words[1..]);
        }
        pod_does.iter().for_each(|command| {
            pod.output(command[0], &command[1..]);
        });
        let error = node.check("a", &pod, Value::Null, &added).unwrap_err();
        assert!(error.to_string().contains(expect), "{error} should say {expect:?}");
        assert_eq!(error.code, ErrorCode::PLUGIN);
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
    };
    damage("lacks the address 10.211", &[], &[&["ip", "addr", "flush", "dev", "eth0"]]);
    damage("lacks the route to 0.0.0.0/0", &[], &[&["ip", "route", "del", "default"]]);
    damage("not a veth link that is up", &[], &[&["ip", "link", "set", "eth0", "down"]]);
    damage("has MTU 1300", &[], &[&["ip", "link", "set", "eth0", "mtu", "1300"]]);
    damage("has MAC address", &[], &[&["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"]]);
    damage("is not a port of berth0", &[&["ip", "link", "set", "VETH", "nomaster"]], &[]);
    damage("port mode", &[&["ip", "link", "set", "VETH", "type", "bridge_slave", "hairpin", "off"]], &[]);
    damage("link veth", &[&["ip", "link", "del", "VETH"]], &[]);
    damage("lacks the gateway address", &[&["ip", "addr", "flush", "dev", "berth0"]], &[]);
    damage("element of map pods4", &[&["nft", "flush", "map", "inet", "berth_masquerade", "pods4"]], &[]);
    damage("rule", &[&["nft", "flush", "chain", "inet", "berth_masquerade", "postrouting"]], &[]);
    damage("rule", &[&["nft", "flush", "ruleset"]], &[]);
    damage("forwarding is off", &[&["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"]], &[]);
    damage("no address is reserved", &[&["rm", "-rf", node.dir.path().join("berth").to_str().unwrap()]], &[]);
}

#[test]
fn the_gateway_is_in_the_subnet() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| {
        only_bridge(json);
        json["plugins"][0]["ipam"]["ranges"] =
            json!([[{"subnet": "10.211.64.0/20", "gateway": "169.254.1.1"}]]);
    });
    let pod = NetNs::new();
    let error = node.add("a", &pod, Value::Null).err().unwrap();
    assert!(error.msg.ends_with("ipam: gateway 169.254.1.1 is not in 10.211.64.0/20"), "{error}");
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_second_add_changes_nothing() {
    if !privileged() {
        return;
    }
    let node = Node::new(only_bridge);
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    let before = node.leftovers();
    let error = node.add("a", &pod, Value::Null).err().unwrap();
    assert!(error.to_string().contains("already has an interface eth0"), "{error}");
    assert_eq!(node.leftovers(), before);
    node.check("a", &pod, Value::Null, &added).unwrap();
    // Another container in the same namespace: the interface's name is taken.
    let error = node.add("b", &pod, Value::Null).err().unwrap();
    assert!(error.to_string().contains("already has an interface eth0"), "{error}");
    assert_eq!(node.leftovers(), before);
}

#[test]
fn what_a_lost_attachment_left_makes_way() {
    if !privileged() {
        return;
    }
    let node = Node::new(only_bridge);
    let (lost, pod) = (NetNs::new(), NetNs::new());
    let first = node.add("a", &lost, Value::Null).unwrap();
    let before = node.leftovers();
    let second = node.add("a", &pod, Value::Null).unwrap();
    assert_eq!(first.ip4(), second.ip4(), "a container keeps its address");
    assert_eq!(node.leftovers(), before);
    node.check("a", &pod, Value::Null, &second).unwrap();
    assert!(!lost.output("ip", &["-o", "link"]).contains("eth0"));
}

#[test]
fn failed_adds_leave_nothing() {
    if !privileged() {
        return;
    }
    let check = |change: &dyn Fn(&mut Value), code: ErrorCode, expect: &str| {
        let node = Node::new(|json| {
            only_bridge(json);
            change(&mut json["plugins"][0]);
        });
        node.host.output("ip", &["tuntap", "add", "dev", "tap0", "mode", "tap"]);
        let pod = NetNs::new();
        let error = node.add("a", &pod, Value::Null).err().unwrap();
        assert!(error.to_string().contains(expect), "{error} should say {expect:?}");
        assert_eq!(error.code, code, "{error}");
        assert_eq!(node.leftovers(), [""; 0], "{expect}");
        assert!(!pod.output("ip", &["-o", "link"]).contains("eth0"), "{expect}");
    };
    let invalid = ErrorCode::INVALID_NETWORK_CONFIG;
    check(
        &|conf| conf["ipam"]["type"] = "dhcp".into(),
        ErrorCode::UNSUPPORTED_FIELD,
        "ipam.type: \"dhcp\" is not supported",
    );
    let single = json!([[{"subnet": "10.1.0.7/32"}]]);
    check(
        &|conf| conf["ipam"]["ranges"] = single.clone(),
        invalid,
        "ipam: 10.1.0.7/32 has no room for a gateway",
    );
    check(&|conf| conf["bridge"] = "tap0".into(), invalid, "bridge: link tap0 exists and is no bridge");
    check(&|conf| conf["ipam"]["ranges"] = json!([]), invalid, "ipam.ranges: missing");
    check(
        &|conf| conf["ipam"]["type"] = "nowhere".into(),
        invalid,
        "ipam.type: no plugin \"nowhere\" in CNI_PATH",
    );
    let far = json!([{"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]);
    check(&|conf| conf["ipam"]["routes"] = far.clone(), ErrorCode::PLUGIN, "adding a route to 10.9.0.0/16");
    let exhausted = json!([[{"subnet": "10.1.0.0/30", "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1"}]]);
    check(
        &|conf| conf["ipam"]["ranges"] = exhausted.clone(),
        ErrorCode::TRY_AGAIN_LATER,
        "no IP addresses available in range set: 10.1.0.1-10.1.0.1",
    );
}

#[test]
fn a_namespace_must_be_one_and_not_our_own() {
    if !privileged() {
        return;
    }
    let node = Node::new(only_bridge);
    let target = attachment("a");
    let check = |netns: &str, expect: &str| {
        let error =
            node.call(0, Verb::Add, (&target, Some(netns.as_ref())), Additions::default()).err().unwrap();
        assert_eq!((error.code, error.msg.contains(expect)), (ErrorCode::INVALID_NETNS, true), "{error}");
        assert_eq!(node.leftovers(), [""; 0]);
    };
    check("/absent", "CNI_NETNS: network namespace /absent does not exist");
    check("/dev/null", "does not exist");
    check("/proc/self/ns/net", "is the namespace that the plugin runs in");
    let error = node.call(0, Verb::Add, (&target, Some("/proc/self/ns/uts".as_ref())), Additions::default());
    assert!(error.is_err());
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_changed_gateway_waits_for_the_old_ones_pods() {
    if !privileged() {
        return;
    }
    let elsewhere = |json: &mut Value| {
        only_bridge(json);
        json["plugins"][0]["ipam"]["ranges"] = json!([[{"subnet": "10.99.0.0/16"}]]);
    };
    let mut node = Node::new(only_bridge);
    let (old, new) = (NetNs::new(), NetNs::new());
    node.add("old", &old, Value::Null).unwrap();
    let mut moved = Node::new(elsewhere);
    std::mem::swap(&mut moved.host, &mut node.host);
    let error = moved.add("new", &new, Value::Null).err().unwrap();
    assert!(error.msg.contains("already has an IP address different from 10.99.0.1/16"), "{error}");
    assert!(!moved.leftovers().iter().any(|name| name.starts_with("10.99")), "{:?}", moved.leftovers());
    std::mem::swap(&mut moved.host, &mut node.host);
    node.del("old", Some(&old.path)).unwrap();
    std::mem::swap(&mut moved.host, &mut node.host);
    moved.add("new", &new, Value::Null).unwrap();
    let addresses = moved.host.output("ip", &["-o", "-4", "addr", "show", "berth0"]);
    assert!(addresses.contains("10.99.0.1/16") && !addresses.contains("10.211"), "{addresses}");
}

#[test]
fn a_changed_gateway_can_be_forced_on_another_bridge() {
    if !privileged() {
        return;
    }
    let mut node = Node::new(only_bridge);
    node.host.output("ip", &["link", "add", "berth0", "type", "bridge"]);
    node.host.output("ip", &["addr", "add", "10.98.0.1/16", "dev", "berth0"]);
    let pod = NetNs::new();
    let error = node.add("a", &pod, Value::Null).err().unwrap();
    assert!(error.msg.contains("already has an IP address different from 10.211.64.1/20"), "{error}");
    assert_eq!(node.leftovers(), [""; 0]);
    let mut forced = Node::new(|json| {
        only_bridge(json);
        json["plugins"][0]["forceAddress"] = true.into();
    });
    std::mem::swap(&mut forced.host, &mut node.host);
    forced.add("a", &pod, Value::Null).unwrap();
    let addresses = forced.host.output("ip", &["-o", "-4", "addr", "show", "berth0"]);
    assert!(addresses.contains("10.211.64.1/20") && !addresses.contains("10.98"), "{addresses}");
}

#[test]
fn gc_keeps_the_valid_and_status_tells() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| {
        json["plugins"][0]["ipam"]["ranges"] = json!([[{"subnet": "10.1.0.0/29"}]]);
    });
    let pods: Vec<NetNs> = (0..3).map(|_| NetNs::new()).collect();
    let ports = |port: u16| json!([{"hostPort": port, "containerPort": 80}]);
    for (index, pod) in pods.iter().enumerate() {
        node.add(&format!("c{index}"), pod, ports(8000 + index as u16)).unwrap();
    }
    node.whole(Verb::Status, None).unwrap();
    node.whole(Verb::Gc, Some(&[attachment("c1")])).unwrap();
    let left = node.leftovers();
    assert!(left.iter().all(|name| !name.contains("/c0/") && !name.contains("/c2/")), "{left:?}");
    assert_eq!(left.len(), 6, "veth, two maps of addresses, port, reservation and its note: {left:?}");
    node.whole(Verb::Gc, Some(&[])).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

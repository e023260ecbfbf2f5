//! tuning chained after bridge.

use proto::cni::runtime::Additions;
use proto::cni::{ErrorCode, Verb};
use serde_json::{Value, json};

use super::node::{NetNs, Node, attachment, privileged};

fn node(change: impl FnOnce(&mut Value)) -> Node {
    Node::new(|json| {
        json["plugins"].as_array_mut().unwrap().truncate(1);
        let data = format!("{}/tuning", json["plugins"][0]["ipam"]["dataDir"].as_str().unwrap());
        let mut plugin = json!({"type": "tuning", "dataDir": data});
        change(&mut plugin);
        json["plugins"].as_array_mut().unwrap().push(plugin);
    })
}

fn kept(node: &Node) -> usize {
    let dir = node.list.plugins[1].map()["dataDir"].as_str().unwrap();
    std::fs::read_dir(dir).into_iter().flatten().count()
}

fn everything(plugin: &mut Value) {
    plugin["sysctl"] = json!({"net.ipv4.conf.IFNAME.log_martians": "1", "net/core/somaxconn": "500"});
    plugin["mac"] = "02:00:00:00:00:77".into();
    plugin["mtu"] = 1400.into();
    plugin["promisc"] = true.into();
    plugin["allmulti"] = true.into();
    plugin["txQLen"] = 333.into();
}

const LOOKS: [&str; 5] = ["02:00:00:00:00:77", "mtu 1400", "PROMISC", "ALLMULTI", "qlen 333"];

#[test]
fn settings_are_made_and_restored() {
    if !privileged() {
        return;
    }
    let node = node(everything);
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    let eth0 = &added.result.interfaces[2];
    assert_eq!((eth0.mac.as_str(), eth0.mtu), ("02:00:00:00:00:77", 1400));
    let looks = || pod.output("ip", &["link", "show", "eth0"]);
    let found = looks();
    LOOKS.iter().for_each(|text| assert!(found.contains(text), "{text} is not in {found}"));
    let sysctl = |path: &str| pod.output("cat", &[&format!("/proc/sys/net/{path}")]).trim().to_owned();
    assert_eq!(sysctl("ipv4/conf/eth0/log_martians"), "1");
    assert_eq!(sysctl("core/somaxconn"), "500");
    assert_eq!(kept(&node), 1);
    // bridge accepts what tuning made of its interface.
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.call(1, Verb::Del, (&attachment("a"), Some(&pod.path)), Additions::default()).unwrap();
    let restored = looks();
    LOOKS.iter().for_each(|text| assert!(!restored.contains(text), "{text} is in {restored}"));
    assert!(restored.contains("mtu 1500"), "{restored}");
    assert_eq!(kept(&node), 0);
    node.del("a", Some(&pod.path)).unwrap();
}

#[test]
fn what_is_kept_goes_whatever_is_lost() {
    if !privileged() {
        return;
    }
    let node = node(everything);
    let check = |what: &str, del: &dyn Fn(&NetNs)| {
        let pod = NetNs::new();
        node.add("a", &pod, Value::Null).unwrap();
        del(&pod);
        assert_eq!(kept(&node), 0, "{what}");
        node.del("a", None).unwrap();
        assert_eq!(node.leftovers(), [""; 0], "{what}");
    };
    check("no namespace", &|_| node.del("a", None).unwrap());
    check("another namespace at its path", &|_| {
        let other = NetNs::new();
        other.output("ip", &["link", "add", "eth0", "mtu", "1300", "type", "bridge"]);
        node.call(1, Verb::Del, (&attachment("a"), Some(&other.path)), Additions::default()).unwrap();
        assert!(other.output("ip", &["link", "show", "eth0"]).contains("mtu 1300"));
    });
    check("interface gone", &|pod| {
        pod.output("ip", &["link", "del", "eth0"]);
        node.del("a", Some(&pod.path)).unwrap();
    });
    check("collected", &|_| {
        node.whole(Verb::Status, None).unwrap();
        node.whole(Verb::Gc, Some(&[attachment("a")])).unwrap();
        assert_eq!(kept(&node), 1);
        node.whole(Verb::Gc, Some(&[])).unwrap();
    });
}

#[test]
fn check_finds_each_damage() {
    if !privileged() {
        return;
    }
    let node = node(everything);
    let check = |command: &[&str], expect: &str| {
        let pod = NetNs::new();
        let added = node.add("a", &pod, Value::Null).unwrap();
        pod.output(command[0], &command[1..]);
        let target = attachment("a");
        let more = Additions { prev_result: Some(&added.json), ..Additions::default() };
        let error = node.call(1, Verb::Check, (&target, Some(&pod.path)), more).err().unwrap();
        assert!(error.msg.contains(expect), "{command:?}: {error}");
        assert_eq!(error.code, ErrorCode::PLUGIN);
        node.del("a", Some(&pod.path)).unwrap();
    };
    check(&["ip", "link", "set", "eth0", "mtu", "1300"], "eth0 has MTU 1300, not 1400");
    check(&["ip", "link", "set", "eth0", "promisc", "off"], "eth0 has promiscuous mode false, not true");
    check(
        &["ip", "link", "set", "eth0", "allmulticast", "off"],
        "eth0 has all-multicast mode false, not true",
    );
    check(&["ip", "link", "set", "eth0", "txqueuelen", "5"], "eth0 has queue length 5, not 333");
    check(
        &["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"],
        "eth0 has MAC address 02:00:00:00:00:01",
    );
    let write = ["sh", "-c", "echo 7 > /proc/sys/net/core/somaxconn"];
    check(&write, "net/core/somaxconn is \"7\", not \"500\"");
    check(&["ip", "link", "del", "eth0"], "the container has no interface eth0");
}

#[test]
fn a_failed_add_restores() {
    if !privileged() {
        return;
    }
    let check = |change: &dyn Fn(&mut Value), code: ErrorCode, expect: &str| {
        let node = node(change);
        let pod = NetNs::new();
        let target = attachment("a");
        let first =
            node.call(0, Verb::Add, (&target, Some(&pod.path)), Additions::default()).unwrap().unwrap();
        let before = pod.output("ip", &["link", "show", "eth0"]);
        let more = Additions { prev_result: Some(&first.json), ..Additions::default() };
        let error = node.call(1, Verb::Add, (&target, Some(&pod.path)), more).err().unwrap();
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(expect), "{error}");
        assert_eq!(pod.output("ip", &["link", "show", "eth0"]), before);
        assert_eq!(kept(&node), 0);
    };
    let absent = json!({"net.ipv4.absent": "1"});
    let expect = "sysctl.net.ipv4.absent: writing /proc/sys/net/ipv4/absent: No such file";
    check(&|plugin| plugin["sysctl"] = absent.clone(), ErrorCode::PLUGIN, expect);
    let evil = json!({"net.ipv4/../../kernel.x": "1"});
    let invalid = ErrorCode::INVALID_NETWORK_CONFIG;
    check(&|plugin| plugin["sysctl"] = evil.clone(), invalid, "is not the name of a kernel parameter");
}

#[test]
fn status_tells_what_add_would_meet() {
    if !privileged() {
        return;
    }
    let node = node(|plugin| plugin["dataDir"] = "/proc/absent".into());
    let error = node.whole(Verb::Status, None).unwrap_err();
    assert_eq!(error.code, ErrorCode::NOT_AVAILABLE);
    assert!(error.msg.ends_with("dataDir: creating /proc/absent"), "{error}");
}

#[test]
fn a_killed_add_is_undone_by_del() {
    if !privileged() {
        return;
    }
    let node = node(everything);
    let target = attachment("a");
    for round in 0..15u64 {
        let pod = NetNs::new();
        let at = (&target, Some(pod.path.as_path()));
        let first = node.call(0, Verb::Add, at, Additions::default()).unwrap().unwrap();
        let look = || pod.output("ip", &["-o", "link", "show", "eth0"]);
        let before = look();
        let more = Additions { prev_result: Some(&first.json), ..Additions::default() };
        let mut child = node.start(1, Verb::Add, at, more);
        // Not a wait for something to become true: the instant of death is what is being varied.
        std::thread::sleep(std::time::Duration::from_micros(round * 200));
        child.kill().unwrap();
        child.wait().unwrap();
        node.call(1, Verb::Del, at, Additions::default()).unwrap();
        assert_eq!((look(), kept(&node)), (before, 0), "round {round}");
        node.del("a", Some(&pod.path)).unwrap();
    }
}

#[test]
fn a_wrong_configuration_does_not_keep_anything() {
    if !privileged() {
        return;
    }
    let node = node(|plugin| plugin["mtu"] = 67.into());
    let pod = NetNs::new();
    let error = node.add("a", &pod, Value::Null).err().unwrap();
    assert!(error.code == ErrorCode::INVALID_NETWORK_CONFIG && error.msg.contains("mtu"), "{error:?}");
    node.del("a", Some(&pod.path)).unwrap();
    node.whole(Verb::Gc, Some(&[])).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

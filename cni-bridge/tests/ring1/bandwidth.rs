//! bandwidth chained after bridge.

use cni_bridge::net::device;
use cni_bridge::net::socket::Socket;
use cni_bridge::owner::Owner;
use proto::cni::runtime::Additions;
use proto::cni::{Attachment, ErrorCode, Verb};
use serde_json::{Value, json};

use super::node::{Added, NetNs, Node, attachment, privileged};
use super::wire::{connect, has_program, serve};

fn node() -> Node {
    Node::new(|json| {
        json["plugins"].as_array_mut().unwrap().truncate(1);
        let plugin = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
        json["plugins"].as_array_mut().unwrap().push(plugin);
    })
}

/// 8 Mbit/s to the pod, 16 Mbit/s from it.
fn limits() -> Value {
    json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
        "egressRate": 16_000_000, "egressBurst": 1_600_000}})
}

fn veth(added: &Added) -> &str {
    &added.result.interfaces[1].name
}

#[test]
fn both_ways_are_limited() {
    if !privileged() || !has_program("tc") {
        return;
    }
    let node = node();
    let pod = NetNs::new();
    let added = node.add_with("a", &pod, limits()).unwrap();
    let detour = &added.result.interfaces[3];
    assert!(detour.name.starts_with("bwp") && detour.name.len() == 15, "{detour:?}");
    let queue = |link: &str| node.host.output("tc", &["-s", "qdisc", "show", "dev", link]);
    let ingress = queue(veth(&added));
    assert!(
        ingress.contains("qdisc tbf 1: root") && ingress.contains("rate 8Mbit burst 100000b lat 25ms"),
        "{ingress}"
    );
    let egress = queue(&detour.name);
    assert!(egress.contains("rate 16Mbit burst 200000b lat 25ms"), "{egress}");
    // What the pod sends passes through the detour and arrives.
    let sent = || -> u64 {
        let shown = queue(&detour.name);
        shown.split_once("Sent ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap()
    };
    // More than what the pod's interface says by itself.
    serve(&node.host, "0.0.0.0:1000");
    let before = sent();
    (0..50).for_each(|_| assert!(connect(&pod, "10.211.64.1:1000").is_ok()));
    assert!(sent() > before + 50 * 4 * 54, "{before} and then {}", sent());
    let alias = node.host.output("ip", &["link", "show", &detour.name]);
    assert!(alias.contains("alias berth/a/eth0"), "{alias}");
    node.check_with("a", &pod, limits(), &added).unwrap();
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn one_way_or_none() {
    if !privileged() {
        return;
    }
    let node = node();
    let check = |limits: Value, links: usize| {
        let pod = NetNs::new();
        let added = node.add_with("a", &pod, limits.clone()).unwrap();
        assert_eq!(added.result.interfaces.len(), links, "{limits}");
        node.check_with("a", &pod, limits, &added).unwrap();
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
    };
    check(json!({}), 3);
    check(json!({"bandwidth": {"ingressRate": 0}}), 3);
    // What Kubernetes' annotations become: a burst that does not limit.
    check(json!({"bandwidth": {"ingressRate": 1_000_000, "ingressBurst": u32::MAX}}), 3);
    check(json!({"bandwidth": {"egressRate": 1_000_000_000_000u64, "egressBurst": u32::MAX}}), 4);
}

#[test]
fn check_finds_each_damage() {
    if !privileged() || !has_program("tc") {
        return;
    }
    let node = node();
    let check = |command: &[&str], expect: &str| {
        let pod = NetNs::new();
        let added = node.add_with("a", &pod, limits()).unwrap();
        node.check_with("a", &pod, limits(), &added).unwrap();
        let detour = &added.result.interfaces[3].name;
        let word = |word: &&str| match *word {
            "VETH" => veth(&added).to_owned(),
            "IFB" => detour.clone(),
            other => other.to_owned(),
        };
        let words: Vec<String> = command.iter().map(word).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        node.host.output(words[0], &words[1..]);
        let error = node.check_with("a", &pod, limits(), &added).unwrap_err();
        assert!(error.msg.contains(expect), "{command:?}: {error}");
        assert_eq!(error.code, ErrorCode::PLUGIN);
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
    };
    check(&["tc", "qdisc", "del", "dev", "VETH", "root"], "has no rate limit");
    let slower = [
        "tc", "qdisc", "change", "dev", "IFB", "root", "tbf", "rate", "1mbit", "burst", "200000", "latency",
        "25ms",
    ];
    check(&slower, "the rate limit of link bwp");
    check(&["tc", "qdisc", "del", "dev", "VETH", "ingress"], "is not redirected through bwp");
    check(&["tc", "filter", "del", "dev", "VETH", "ingress"], "is not redirected through bwp");
    check(&["ip", "link", "set", "IFB", "down"], "is not a link of kind ifb that is up");
    check(&["ip", "link", "del", "IFB"], "is not a link of kind ifb that is up");
}

#[test]
fn gc_removes_what_nobody_has() {
    if !privileged() {
        return;
    }
    let node = node();
    let (a, b) = (NetNs::new(), NetNs::new());
    node.add_with("a", &a, limits()).unwrap();
    node.add_with("b", &b, limits()).unwrap();
    node.host.output("ip", &["link", "add", "bwp000000000000", "type", "ifb"]);
    node.whole(Verb::Status, None).unwrap();
    node.whole(Verb::Gc, Some(&[attachment("b")])).unwrap();
    let ifbs = |node: &Node| node.host.output("ip", &["-o", "link", "show", "type", "ifb"]).lines().count();
    assert_eq!(ifbs(&node), 2, "b's and one without a tag");
    node.del("b", Some(&b.path)).unwrap();
    assert_eq!(ifbs(&node), 1);
}

/// An ADD that was killed between making the link and tagging it has left the network's group on it.
#[test]
fn gc_removes_what_was_never_tagged() {
    if !privileged() {
        return;
    }
    let node = node();
    let pod = NetNs::new();
    let added = node.add_with("a", &pod, limits()).unwrap();
    let name = added.result.interfaces[3].name.clone();
    node.del("a", None).unwrap();
    let draft = |name: &str, network: &'static str| {
        let name = name.to_owned();
        node.host.run(move || {
            let mut socket = Socket::route().unwrap();
            device::create_ifb(&mut socket, &name, 1500, Owner::draft_group(network)).unwrap();
        });
    };
    draft(&name, "berth");
    draft("bwp000000000000", "berth");
    draft("bwp000000000001", "other");
    node.whole(Verb::Gc, Some(&[attachment("a")])).unwrap();
    assert_eq!(node.leftovers(), ["bwp000000000001", name.as_str()], "a's, and another network's");
    node.whole(Verb::Gc, Some(&[attachment("b")])).unwrap();
    assert_eq!(node.leftovers(), ["bwp000000000001"]);
    // A tagged link is of no network's drafts any more.
    node.add_with("a", &pod, limits()).unwrap();
    let shown = node.host.output("ip", &["-d", "link", "show", &name]);
    assert!(shown.contains("group default"), "{shown}");
}

#[test]
fn a_killed_add_is_undone_by_del_or_gc() {
    if !privileged() {
        return;
    }
    let node = node();
    let target = attachment("a");
    for round in 0..24u64 {
        let pod = NetNs::new();
        let first =
            node.call(0, Verb::Add, (&target, Some(&pod.path)), Additions::default()).unwrap().unwrap();
        let capabilities = limits();
        let more = Additions {
            capability_args: capabilities.as_object(),
            prev_result: Some(&first.json),
            valid_attachments: None,
        };
        let mut child = node.start(1, Verb::Add, (&target, Some(&pod.path)), more);
        // Not a wait for something to become true: the instant of death is what is being varied.
        std::thread::sleep(std::time::Duration::from_micros(round * 300));
        child.kill().unwrap();
        child.wait().unwrap();
        match round % 3 {
            0 => node.del("a", Some(&pod.path)).unwrap(),
            1 => node.del("a", None).unwrap(),
            _ => node.whole(Verb::Gc, Some(&[])).unwrap(),
        }
        assert_eq!(node.leftovers(), [""; 0], "round {round}");
    }
}

#[test]
fn only_a_veth_can_be_limited() {
    if !privileged() {
        return;
    }
    let node = node();
    let pod = NetNs::new();
    pod.output("ip", &["link", "add", "eth0", "type", "bridge"]);
    let (capabilities, result) = (limits(), json!({"cniVersion": "1.1.0", "ips": []}));
    let more = Additions {
        capability_args: capabilities.as_object(),
        prev_result: Some(&result),
        valid_attachments: None,
    };
    let error = node.call(1, Verb::Add, (&attachment("a"), Some(&pod.path)), more).err().unwrap();
    assert!(error.msg.contains("eth0 is no end of a veth pair"), "{error}");
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn two_interfaces_of_a_pod_have_limits_of_their_own() {
    if !privileged() {
        return;
    }
    let node = node();
    let pod = NetNs::new();
    let target = |ifname: &str| Attachment { ifname: ifname.parse().unwrap(), ..attachment("a") };
    let limits = limits();
    let on = |index: usize, verb: Verb, ifname: &str, added: Option<&Added>| {
        let more = Additions {
            prev_result: added.map(|added| &added.json),
            capability_args: limits.as_object(),
            ..Additions::default()
        };
        node.call(index, verb, (&target(ifname), Some(&pod.path)), more)
    };
    let add = |ifname: &str| {
        let linked = on(0, Verb::Add, ifname, None).unwrap();
        on(1, Verb::Add, ifname, linked.as_ref()).unwrap().unwrap()
    };
    let (first, second) = (add("eth0"), add("net1"));
    assert_ne!(first.result.interfaces[3].name, second.result.interfaces[3].name);
    on(1, Verb::Check, "eth0", Some(&first)).unwrap();
    on(1, Verb::Check, "net1", Some(&second)).unwrap();
    for index in [1, 0] {
        on(index, Verb::Del, "net1", None).unwrap();
    }
    on(1, Verb::Check, "eth0", Some(&first)).unwrap();
    for index in [1, 0] {
        on(index, Verb::Del, "eth0", None).unwrap();
    }
    assert_eq!(node.leftovers(), [""; 0]);
}

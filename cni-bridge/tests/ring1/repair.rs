//! `cni-bridge repair`: lost rules of living attachments.

use std::os::unix::fs::symlink;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proto::cni::runtime::Additions;
use proto::cni::{ErrorCode, Verb};
use serde_json::{Value, json};

use super::node::{Added, NetNs, Node, attachment, privileged};
use super::wire::{connect, is_lost, serve, wire};

pub fn with_firewall(json: &mut Value) {
    json["plugins"][0]["isolateNetworks"] = true.into();
    let firewall = json!({"type": "firewall", "ingressPolicy": "isolated"});
    json["plugins"].as_array_mut().unwrap().push(firewall);
}

/// The record that libcni keeps of an ADD.
pub fn record(node: &Node, container: &str, pod: &NetNs, ports: &Value, added: &Added) {
    let record = json!({
        "kind": "cniCacheV1", "containerId": container, "config": STANDARD.encode(node.list.to_bytes()),
        "ifName": "eth0", "networkName": node.list.name, "netns": pod.path, "cniArgs": [["IgnoreUnknown", "1"]],
        "capabilityArgs": {"portMappings": ports}, "result": added.json,
    });
    let dir = node.dir.path().join("results");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(format!("{}-{container}-eth0", node.list.name)), record.to_string()).unwrap();
}

/// Runs the program on all records, with `plugins` in the only directory of CNI_PATH.
#[allow(clippy::disallowed_methods, reason = "the test runs the program under test")]
pub fn repair(node: &Node, plugins: &[&str]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_cni-bridge");
    plugins.iter().for_each(|plugin| symlink(program, dir.path().join(plugin)).unwrap());
    std::fs::write(dir.path().join("foreign"), "").unwrap();
    let (records, path) = (node.dir.path().join("results"), dir.path().to_owned());
    let output = node.host.run(move || {
        Command::new(program).arg("repair").arg(records).env_clear().env("CNI_PATH", path).output().unwrap()
    });
    assert!(output.stdout.is_empty());
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

pub const ALL: [&str; 3] = ["bridge", "portmap", "firewall"];

#[test]
fn whatever_rules_are_lost_come_back() {
    if !privileged() {
        return;
    }
    let node = Node::new(with_firewall);
    let (a, b, world) = (NetNs::new(), NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    let ports = json!([{"hostPort": 8080, "containerPort": 80}, {"hostPort": 0, "containerPort": 80}]);
    let added = node.add("a", &a, ports.clone()).unwrap();
    let other = node.add("b", &b, Value::Null).unwrap();
    record(&node, "a", &a, &ports, &added);
    record(&node, "b", &b, &Value::Null, &other);
    serve(&a, "0.0.0.0:80");
    serve(&world, "0.0.0.0:1000");
    let free = added.result.port_mappings[0].host_port;
    let works = |what: &str| {
        for port in [8080, free] {
            assert_eq!(connect(&world, &format!("192.0.2.1:{port}")), Ok("192.0.2.2".to_owned()), "{what}");
        }
        assert!(connect(&node.host, "127.0.0.1:8080").is_ok(), "{what}");
        assert_eq!(connect(&a, "192.0.2.2:1000"), Ok("192.0.2.1".to_owned()), "{what}");
        node.check("a", &a, ports.clone(), &added).unwrap();
        node.check("b", &b, Value::Null, &other).unwrap();
    };
    works("before");
    let before = node.leftovers();
    let damage = |command: &[&str]| {
        node.host.output("nft", command);
        repair(&node, &ALL).unwrap();
        works(&command.join(" "));
        assert_eq!(node.leftovers(), before, "{command:?}");
    };
    damage(&["flush", "ruleset"]);
    damage(&["delete", "table", "inet", "berth_portmap"]);
    damage(&["delete", "table", "inet", "berth_masquerade"]);
    damage(&["delete", "table", "inet", "berth_localnet"]);
    damage(&["delete", "table", "inet", "berth_firewall"]);
    damage(&["delete", "table", "bridge", "berth_firewall"]);
    damage(&["delete", "table", "inet", "berth_isolation"]);
    damage(&["flush", "map", "inet", "berth_isolation", "to4"]);
    node.host.output("sh", &["-c", "echo 0 > /proc/sys/net/ipv4/conf/berth0/route_localnet"]);
    repair(&node, &ALL).unwrap();
    works("route_localnet");
    damage(&["flush", "map", "inet", "berth_portmap", "ports4"]);
    damage(&["flush", "map", "inet", "berth_masquerade", "pods4"]);
    damage(&["flush", "map", "bridge", "berth_firewall", "pods4"]);
    damage(&["flush", "chain", "inet", "berth_portmap", "publish"]);
    damage(&["flush", "chain", "inet", "berth_masquerade", "leaving_10.211.64.0/20"]);
    damage(&["flush", "chain", "inet", "berth_masquerade", "inside"]);
    damage(&["flush", "chain", "inet", "berth_firewall", "isolated_links"]);
    serve(&b, "0.0.0.0:80");
    assert!(is_lost(&a, &format!("{}:80", other.ip4())), "the policy holds again");
    // What is whole is not touched.
    let generation = |node: &Node| {
        node.host.run(|| {
            let mut socket = cni_bridge::net::socket::Socket::netfilter().unwrap();
            cni_bridge::net::nft::generation(&mut socket).unwrap()
        })
    };
    let seen = generation(&node);
    repair(&node, &ALL).unwrap();
    assert_eq!(generation(&node), seen);
    node.del("a", None).unwrap();
    node.del("b", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

/// As long as the runtime calls one plugin after another, its record is still there, and so may the namespace be.
#[test]
fn what_is_being_detached_stays_away() {
    if !privileged() {
        return;
    }
    let node = Node::new(with_firewall);
    let pod = NetNs::new();
    let ports = json!([{"hostPort": 8080, "containerPort": 80}]);
    let added = node.add("a", &pod, ports.clone()).unwrap();
    record(&node, "a", &pod, &ports, &added);
    let target = attachment("a");
    for index in [2, 1, 0] {
        node.call(index, Verb::Del, (&target, Some(&pod.path)), Additions::default()).unwrap();
        let left = node.leftovers();
        repair(&node, &ALL).unwrap();
        assert_eq!(node.leftovers(), left, "after DEL of {}", ALL[index]);
        // What has not gone yet will not be needed any more.
        node.host.output("nft", &["flush", "ruleset"]);
        repair(&node, &ALL).unwrap();
        assert_eq!(node.host.output("nft", &["list", "ruleset"]), "", "after DEL of {}", ALL[index]);
    }
    // The same attachment comes again.
    let added = node.add("a", &pod, ports.clone()).unwrap();
    record(&node, "a", &pod, &ports, &added);
    node.host.output("nft", &["flush", "ruleset"]);
    repair(&node, &ALL).unwrap();
    node.check("a", &pod, ports, &added).unwrap();
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn repair_and_del_at_once_leave_nothing() {
    if !privileged() {
        return;
    }
    let node = Node::new(with_firewall);
    let ports = json!([{"hostPort": 8080, "containerPort": 80}]);
    let pod = NetNs::new();
    for round in 0..12 {
        let added = node.add("a", &pod, ports.clone()).unwrap();
        record(&node, "a", &pod, &ports, &added);
        node.host.output("nft", &["flush", "ruleset"]);
        std::thread::scope(|scope| {
            let repairing = scope.spawn(|| repair(&node, &ALL));
            node.del("a", Some(&pod.path)).unwrap();
            repairing.join().unwrap().unwrap();
        });
        assert_eq!(node.leftovers(), [""; 0], "round {round}");
    }
}

/// Two networks may have one subnet.
#[test]
fn what_two_networks_have_is_repaired_for_both() {
    if !privileged() {
        return;
    }
    let conf = |bridge: &str| {
        json!({"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "isolateNetworks": true,
            "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}})
    };
    let (mut node, first) = Node::with(conf("br0")).beside("other", conf("br1"));
    let pods = [NetNs::new(), NetNs::new()];
    let lists = [node.list.clone(), first];
    let mut added = Vec::new();
    for (list, pod) in lists.iter().zip(&pods) {
        node.list = list.clone();
        added.push(node.add("a", pod, Value::Null).unwrap());
        record(&node, "a", pod, &Value::Null, &added[added.len() - 1]);
    }
    node.host.output("nft", &["flush", "ruleset"]);
    repair(&node, &["bridge"]).unwrap();
    for ((list, pod), added) in lists.iter().zip(&pods).zip(&added) {
        node.list = list.clone();
        node.check("a", pod, Value::Null, added).unwrap();
    }
    for list in &lists {
        node.list = list.clone();
        node.del("a", None).unwrap();
    }
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn ptp_is_repaired_too() {
    if !privileged() {
        return;
    }
    let node = Node::with(json!({"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local",
        "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.9.0.0/24"}]]}}));
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    serve(&world, "0.0.0.0:1000");
    let added = node.add("a", &pod, Value::Null).unwrap();
    record(&node, "a", &pod, &Value::Null, &added);
    node.host.output("nft", &["flush", "ruleset"]);
    repair(&node, &["ptp"]).unwrap();
    assert_eq!(connect(&pod, "192.0.2.2:1000"), Ok("192.0.2.1".to_owned()));
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn only_what_lives_and_is_ours_is_repaired() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let pod = NetNs::new();
    let ports = json!([{"hostPort": 8080, "containerPort": 80}]);
    let added = node.add("a", &pod, ports.clone()).unwrap();
    record(&node, "a", &pod, &ports, &added);
    let tables = |node: &Node| node.host.output("nft", &["list", "tables"]);
    let flush = |node: &Node| node.host.output("nft", &["flush", "ruleset"]);
    flush(&node);
    repair(&node, &[]).unwrap();
    assert_eq!(tables(&node), "");
    repair(&node, &["portmap"]).unwrap();
    let found = tables(&node);
    assert!(found.contains("berth_portmap") && !found.contains("berth_masquerade"), "{found}");
    // Somebody else got the port meanwhile.
    flush(&node);
    let other = NetNs::new();
    node.add("b", &other, ports).unwrap();
    let error = repair(&node, &["portmap"]).unwrap_err();
    assert!(error.contains("tcp host port 8080 is already published for berth/b/eth0"), "{error}");
    node.del("b", Some(&other.path)).unwrap();
    node.del("a", None).unwrap();
    drop(pod);
    flush(&node);
    repair(&node, &["bridge", "portmap"]).unwrap();
    assert_eq!(tables(&node), "");
}

#[test]
fn forwarding_that_was_turned_off_is_turned_on() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    record(&node, "a", &pod, &Value::Null, &added);
    node.host.output("sh", &["-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"]);
    let error = node.whole(Verb::Status, None).unwrap_err();
    assert_eq!(error.code, ErrorCode::LIMITED_CONNECTIVITY, "{error}");
    repair(&node, &ALL).unwrap();
    node.whole(Verb::Status, None).unwrap();
    assert_eq!(node.host.output("cat", &["/proc/sys/net/ipv4/ip_forward"]), "1\n");
}

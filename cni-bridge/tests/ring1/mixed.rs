//! A node that changes between the reference plugins and Berth's while pods live.

use std::path::Path;

use proto::cni::Verb;
use serde_json::{Value, json};

use super::node::{NetNs, Node, privileged};
use super::wire::{connect, has_program, serve, wire};

/// Where Debian installs the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

fn node() -> Option<Node> {
    if !privileged() || !has_program("iptables") || !has_program("ip6tables") {
        return None;
    }
    if !Path::new(REFERENCE).join("portmap").exists() {
        assert!(
            std::env::var("E2E_REQUIRE").as_deref() != Ok("1"),
            "E2E_REQUIRE=1, but there are no plugins in {REFERENCE}"
        );
        eprintln!("SKIPPED: there are no reference plugins in {REFERENCE}");
        return None;
    }
    let node = Node::new(|json| {
        // What those that Debian has understand.
        json["cniVersions"] = json!(["0.4.0", "1.0.0"]);
        let data = format!("{}/tuning", json["plugins"][0]["ipam"]["dataDir"].as_str().unwrap());
        let plugins = json["plugins"].as_array_mut().unwrap();
        plugins.push(json!({"type": "firewall", "ingressPolicy": "same-bridge"}));
        plugins.push(json!({"type": "tuning", "mtu": 1400, "dataDir": data}));
        plugins.push(json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000,
            "egressRate": 8_000_000, "egressBurst": 800_000}));
    });
    // As a container engine leaves it.
    for tool in ["iptables", "ip6tables"] {
        node.host.output(tool, &["-P", "FORWARD", "DROP"]);
    }
    Some(node)
}

fn ports() -> Value {
    json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}])
}

#[test]
fn what_the_reference_made_is_undone() {
    let Some(mut node) = node() else { return };
    node.others = Some(REFERENCE.into());
    let (pod, other) = (NetNs::new(), NetNs::new());
    let added = node.add("a", &pod, ports()).unwrap();
    node.add("b", &other, json!([{"hostPort": 8082, "containerPort": 80, "protocol": "tcp"}])).unwrap();
    serve(&pod, "0.0.0.0:80");
    serve(&other, "0.0.0.0:80");
    assert!(connect(&node.host, "127.0.0.1:8080").is_ok());
    let own = |text: &str| {
        text.lines().filter(|line| line.contains("id: \\\"a\\\"") || line.contains("CNI-DN")).count()
    };
    let nat = |node: &Node| node.host.output("iptables", &["-t", "nat", "-S"]);
    assert!(own(&nat(&node)) > 0);
    node.others = None;
    node.del_with("a", Some(&pod.path), &added).unwrap();
    let left = nat(&node);
    assert!(!left.contains("id: \\\"a\\\"") && !left.contains("8080"), "{left}");
    assert!(left.contains("8082"), "{left}");
    assert!(!pod.output("ip", &["-o", "link"]).contains("eth0"));
    let filter = node.host.output("iptables", &["-S"]);
    assert!(!filter.contains(&added.ip4().to_string()), "{filter}");
    // The other pod, of the reference's making, goes on.
    assert!(connect(&node.host, "127.0.0.1:8082").is_ok());
    let added = node.add("a", &pod, ports()).unwrap();
    assert!(connect(&node.host, "127.0.0.1:8080").is_ok());
    node.check("a", &pod, ports(), &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
}

#[test]
fn the_reference_can_undo_and_the_rest_is_collected() {
    let Some(mut node) = node() else { return };
    // Those that Debian has cannot remove a masquerade that is not there: with iptables 1.8.9 their DEL fails on it.
    let mut json: Value = serde_json::from_slice(&node.list.to_bytes()).unwrap();
    json["plugins"][0]["ipMasq"] = false.into();
    node.list = proto::cni::NetConfList::parse(json.to_string().as_bytes()).unwrap();
    let pod = NetNs::new();
    let added = node.add("a", &pod, ports()).unwrap();
    node.others = Some(REFERENCE.into());
    node.del_with("a", Some(&pod.path), &added).unwrap();
    node.others = None;
    assert!(!pod.output("ip", &["-o", "link"]).contains("eth0"));
    let mut json: Value = serde_json::from_slice(&node.list.to_bytes()).unwrap();
    json["cniVersions"] = json!(["1.1.0"]);
    node.list = proto::cni::NetConfList::parse(json.to_string().as_bytes()).unwrap();
    node.whole(Verb::Gc, Some(&[])).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

/// What a service's proxy sends to a pod, through rules of its own, arrives with its source.
#[test]
fn what_others_send_to_a_pod_keeps_its_source() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| json["plugins"][1]["masqAll"] = true.into());
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    node.add("a", &pod, json!([{"hostPort": 12000, "containerPort": 80}])).unwrap();
    serve(&pod, "0.0.0.0:80");
    let proxy = "table ip proxy { chain pre { type nat hook prerouting priority -110; \
        ip daddr 192.0.2.1 tcp dport 9999 dnat to 10.211.64.2:80; }; }";
    node.host.output("nft", &[proxy]);
    assert_eq!(connect(&world, "192.0.2.1:12000"), Ok("10.211.64.1".to_owned()));
    assert_eq!(connect(&world, "192.0.2.1:9999"), Ok("192.0.2.2".to_owned()));
}

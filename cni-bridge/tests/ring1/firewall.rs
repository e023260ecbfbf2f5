//! firewall chained after bridge.

use proto::cni::runtime::Additions;
use proto::cni::{ErrorCode, NetConfList, Verb};
use serde_json::{Value, json};

use super::node::{Added, NetNs, Node, attachment, privileged};
use super::wire::{connect, has_program, is_lost, serve, wire};

/// bridge and firewall on `bridge` with `10.<net>.0.0/24` and `fd00:<net>::/64`.
fn configure(json: &mut Value, bridge: &str, net: u8, policy: &str) {
    json["plugins"].as_array_mut().unwrap().truncate(1);
    json["name"] = bridge.into();
    json["plugins"][0]["bridge"] = bridge.into();
    json["plugins"][0]["ipMasq"] = false.into();
    json["plugins"][0]["ipam"]["ranges"] =
        json!([[{"subnet": format!("10.{net}.0.0/24")}], [{"subnet": format!("fd00:{net}::/64")}]]);
    let firewall = json!({"type": "firewall", "ingressPolicy": policy});
    json["plugins"].as_array_mut().unwrap().push(firewall);
}

fn list(policy: &str, bridge: &str, net: u8, node: &Node) -> NetConfList {
    let mut json: Value = serde_json::from_slice(&node.list.to_bytes()).unwrap();
    configure(&mut json, bridge, net, policy);
    NetConfList::parse(json.to_string().as_bytes()).unwrap()
}

#[test]
fn policies_keep_pods_apart() {
    if !privileged() {
        return;
    }
    // Reached from a pod on the same bridge, and from one on another bridge.
    for (policy, same, other) in
        [("open", true, true), ("same-bridge", true, false), ("isolated", false, false)]
    {
        // With and without bridged packets passing through the host's rules.
        for bridge_netfilter in ["0", "1"] {
            keeps_apart(policy, (same, other), bridge_netfilter);
        }
    }
}

fn keeps_apart(policy: &str, (same, other): (bool, bool), bridge_netfilter: &str) {
    let mut node = Node::new(|json| configure(json, "one", 1, policy));
    for switch in ["iptables", "ip6tables"] {
        let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{switch}");
        node.host.output("sh", &["-c", &format!("[ ! -e {switch} ] || echo {bridge_netfilter} > {switch}")]);
    }
    let first = node.list.clone();
    let second = list(policy, "two", 2, &node);
    let (a, b, c) = (NetNs::new(), NetNs::new(), NetNs::new());
    let added = node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    node.list = second;
    node.add("c", &c, Value::Null).unwrap();
    serve(&a, "0.0.0.0:80");
    serve(&a, "[::]:81");
    let check = |from: &NetNs, expect: bool| {
        for address in [format!("{}:80", added.ip4()), format!("[{}]:81", added.ip6())] {
            match expect {
                true => assert!(connect(from, &address).is_ok(), "{policy} {address}"),
                false => assert!(is_lost(from, &address), "{policy} {address}"),
            }
        }
    };
    check(&node.host, true);
    check(&b, same);
    check(&c, other);
    // Answers come through.
    serve(&node.host, "0.0.0.0:1000");
    assert!(connect(&a, "10.1.0.1:1000").is_ok());
    node.del("c", None).unwrap();
    node.list = first;
    node.check("a", &a, Value::Null, &added).unwrap();
    node.del("b", Some(&b.path)).unwrap();
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0], "{policy}");
    assert!(!node.host.output("nft", &["list", "ruleset"]).contains("berth_firewall"));
}

#[test]
fn a_host_that_drops_what_it_forwards_lets_pods_through() {
    if !privileged() || !has_program("iptables") || !has_program("ip6tables") {
        return;
    }
    let mut node = Node::new(|json| configure(json, "one", 1, "open"));
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    world.output("ip", &["route", "add", "10.0.0.0/8", "via", "192.0.2.1"]);
    serve(&world, "0.0.0.0:1000");
    for tool in ["iptables", "ip6tables"] {
        node.host.output(tool, &["-P", "FORWARD", "DROP"]);
    }
    let before = node.host.output("iptables", &["-S"]);
    let whole = node.list.clone();
    let mut bare: Value = serde_json::from_slice(&whole.to_bytes()).unwrap();
    bare["plugins"].as_array_mut().unwrap().truncate(1);
    node.list = NetConfList::parse(bare.to_string().as_bytes()).unwrap();
    node.add("bare", &pod, Value::Null).unwrap();
    assert!(is_lost(&pod, "192.0.2.2:1000"));
    node.del("bare", Some(&pod.path)).unwrap();

    node.list = whole;
    let added = node.add("a", &pod, Value::Null).unwrap();
    let address = added.ip4();
    assert_eq!(connect(&pod, "192.0.2.2:1000"), Ok(address.to_string()));
    serve(&pod, "0.0.0.0:80");
    // As with the reference plugin, only what the pod began comes back.
    assert!(is_lost(&world, &format!("{address}:80")));
    let shown = node.host.output("iptables", &["-S"]);
    for line in [
        "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD".to_owned(),
        "-A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN".to_owned(),
        format!("-A CNI-FORWARD -s {address}/32 -m comment --comment \"one/a/eth0\" -j ACCEPT"),
        format!("-A CNI-FORWARD -d {address}/32 -m conntrack --ctstate RELATED,ESTABLISHED"),
    ] {
        assert!(shown.contains(&line), "{line}\nis not in\n{shown}");
    }
    assert!(node.host.output("ip6tables", &["-S"]).contains(&format!("-s {}/128", added.ip6())));
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.del("a", None).unwrap();
    assert_eq!(node.host.output("iptables", &["-S"]), before);
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn rules_of_others_stay() {
    if !privileged() || !has_program("iptables") {
        return;
    }
    let node = Node::new(|json| {
        configure(json, "one", 1, "open");
        json["plugins"][1]["iptablesAdminChainName"] = "MY-ADMIN".into();
    });
    let (a, b) = (NetNs::new(), NetNs::new());
    let iptables = |words: &[&str]| node.host.output("iptables", words);
    // What the reference plugin leaves for another pod, and an administrator's rule.
    iptables(&["-P", "FORWARD", "ACCEPT"]);
    iptables(&["-N", "CNI-FORWARD"]);
    iptables(&["-A", "CNI-FORWARD", "-s", "10.1.0.77/32", "-j", "ACCEPT"]);
    iptables(&["-N", "MY-ADMIN"]);
    iptables(&["-A", "MY-ADMIN", "-s", "10.9.9.9/32", "-j", "DROP"]);
    let added = node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    node.whole(Verb::Gc, Some(&[attachment("b")])).unwrap();
    let shown = iptables(&["-S"]);
    for (text, stays) in
        [("10.1.0.77/32", true), ("one/b/eth0", true), ("one/a/eth0", false), ("10.9.9.9", true)]
    {
        assert_eq!(shown.contains(text), stays, "{text}: {shown}");
    }
    assert_eq!(shown.matches("-j CNI-FORWARD").count(), 1, "{shown}");
    assert!(shown.contains("-j MY-ADMIN") && !shown.contains("CNI-ADMIN"), "{shown}");
    node.del("b", None).unwrap();
    // The reference plugin's own: recognised by the addresses of the result.
    let target = attachment("c");
    let mut json = added.json.clone();
    json["ips"][0]["address"] = "10.1.0.77/24".into();
    let more = Additions { prev_result: Some(&json), ..Additions::default() };
    node.call(1, Verb::Del, (&target, None), more).unwrap();
    let shown = iptables(&["-S"]);
    assert!(!shown.contains("10.1.0.77") && shown.contains("10.9.9.9"), "{shown}");
}

#[test]
fn check_finds_each_damage() {
    if !privileged() || !has_program("iptables") {
        return;
    }
    let node = Node::new(|json| configure(json, "one", 1, "isolated"));
    node.host.output("iptables", &["-P", "FORWARD", "DROP"]);
    let pod = NetNs::new();
    let check = |command: &[&str]| {
        let added: Added = node.add("a", &pod, Value::Null).unwrap();
        node.check("a", &pod, Value::Null, &added).unwrap();
        node.host.output(command[0], &command[1..]);
        let error = node.check("a", &pod, Value::Null, &added).unwrap_err();
        assert!(error.msg.contains("plugin firewall: firewall: "), "{command:?}: {error}");
        assert_eq!(error.code, ErrorCode::PLUGIN);
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
        node.host.output("iptables", &["-P", "FORWARD", "DROP"]);
    };
    check(&["iptables", "-F", "FORWARD"]);
    check(&["iptables", "-F", "CNI-FORWARD"]);
    check(&["iptables", "-D", "CNI-FORWARD", "2"]);
    check(&["nft", "flush", "map", "inet", "berth_firewall", "pods4"]);
    check(&["nft", "flush", "map", "bridge", "berth_firewall", "pods6"]);
    check(&["nft", "flush", "chain", "inet", "berth_firewall", "isolated_one"]);
    check(&["nft", "flush", "chain", "inet", "berth_firewall", "isolated_links"]);
    check(&["nft", "flush", "chain", "bridge", "berth_firewall", "forward"]);
    check(&["nft", "delete", "table", "bridge", "berth_firewall"]);
    check(&["nft", "delete", "table", "inet", "berth_firewall"]);
}

#[test]
fn a_killed_add_is_undone_by_del() {
    if !privileged() || !has_program("iptables") {
        return;
    }
    let node = Node::new(|json| configure(json, "one", 1, "isolated"));
    node.host.output("iptables", &["-P", "FORWARD", "DROP"]);
    let (pod, target) = (NetNs::new(), attachment("a"));
    for round in 0..20u64 {
        let at = (&target, Some(pod.path.as_path()));
        let first = node.call(0, Verb::Add, at, Additions::default()).unwrap().unwrap();
        let more = Additions { prev_result: Some(&first.json), ..Additions::default() };
        let mut child = node.start(1, Verb::Add, at, more);
        // Not a wait for something to become true: the instant of death is what is being varied.
        std::thread::sleep(std::time::Duration::from_micros(round * 200));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut child = node.start(1, Verb::Del, at, Additions::default());
        std::thread::sleep(std::time::Duration::from_micros(round * 150));
        child.kill().unwrap();
        child.wait().unwrap();
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), [""; 0], "round {round}");
    }
}

#[test]
fn a_policy_needs_a_bridge() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| configure(json, "one", 1, "isolated"));
    let pod = NetNs::new();
    let result = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}]});
    let more = Additions { prev_result: Some(&result), ..Additions::default() };
    let error = node.call(1, Verb::Add, (&attachment("a"), Some(&pod.path)), more).err().unwrap();
    assert_eq!(error.code, ErrorCode::INVALID_NETWORK_CONFIG);
    assert!(
        error.msg.ends_with("ingressPolicy: prevResult.interfaces names no bridge of this host"),
        "{error}"
    );
    assert_eq!(node.leftovers(), [""; 0]);
    node.whole(Verb::Status, None).unwrap();
}

#[test]
fn a_legacy_filter_is_told() {
    if !privileged() || !has_program("iptables-legacy") {
        return;
    }
    let node = Node::with(json!({"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.6.0.0/24"}}));
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    let (node, _) = node.beside("filtered", json!({"type": "firewall"}));
    let told = || {
        let more = Additions { prev_result: Some(&added.json), ..Additions::default() };
        let child = node.start(0, Verb::Add, (&attachment("a"), Some(&pod.path)), more);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(told(), "");
    node.host.output("sh", &["-c", "iptables-legacy -P FORWARD DROP || true"]);
    if !node
        .host
        .output("sh", &["-c", "cat /proc/thread-self/net/ip_tables_names || true"])
        .contains("filter")
    {
        eprintln!("SKIPPED: the kernel does not have the legacy iptables");
        return;
    }
    assert!(told().starts_with("firewall: the legacy iptables has a table filter on this host"));
}

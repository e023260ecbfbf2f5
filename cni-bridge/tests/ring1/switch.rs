//! bridge: what its options do to the pods' traffic.

use proto::cni::runtime::Additions;
use proto::cni::{Attachment, ErrorCode, Verb};
use serde_json::{Value, json};

use super::node::{NetNs, Node, attachment, privileged};
use super::wire::{connect, is_cut_off, serve, wire};

fn conf(bridge: &str, subnet: &str) -> Value {
    json!({"type": "bridge", "bridge": bridge, "isDefaultGateway": true,
        "ipam": {"type": "host-local", "subnet": subnet}})
}

#[test]
fn a_spoofed_address_goes_nowhere() {
    if !privileged() {
        return;
    }
    let mut conf = conf("br0", "10.8.0.0/24");
    conf["macspoofchk"] = true.into();
    let node = Node::with(conf);
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    serve(&node.host, "0.0.0.0:1000");
    assert_eq!(connect(&pod, "10.8.0.1:1000"), Ok("10.8.0.2".to_owned()));
    node.check("a", &pod, Value::Null, &added).unwrap();
    pod.output("ip", &["link", "set", "eth0", "address", "02:00:00:00:00:66"]);
    assert!(is_cut_off(&pod, "10.8.0.1:1000"));
    pod.output("ip", &["link", "set", "eth0", "address", &added.result.interfaces[2].mac]);
    assert_eq!(connect(&pod, "10.8.0.1:1000"), Ok("10.8.0.2".to_owned()));
    let veth = &added.result.interfaces[1].name;
    node.host.output("bridge", &["fdb", "del", &added.result.interfaces[2].mac, "dev", veth, "master"]);
    let error = node.check("a", &pod, Value::Null, &added).unwrap_err();
    assert!(error.msg.contains("does not expect the address"), "{error}");
    node.del("a", Some(&pod.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn isolated_ports_reach_only_the_gateway() {
    if !privileged() {
        return;
    }
    let mut conf = conf("br0", "10.8.0.0/24");
    conf["portIsolation"] = true.into();
    let node = Node::with(conf);
    let (a, b) = (NetNs::new(), NetNs::new());
    node.add("a", &a, Value::Null).unwrap();
    node.add("b", &b, Value::Null).unwrap();
    serve(&node.host, "0.0.0.0:1000");
    serve(&b, "0.0.0.0:1000");
    assert_eq!(connect(&a, "10.8.0.1:1000"), Ok("10.8.0.2".to_owned()));
    assert!(is_cut_off(&a, "10.8.0.3:1000"));
}

#[test]
fn isolated_networks_do_not_reach_each_other() {
    if !privileged() {
        return;
    }
    let isolated = |bridge: &str, subnet: &str| {
        let mut conf = conf(bridge, subnet);
        conf["isolateNetworks"] = true.into();
        conf
    };
    let (node, world) = (Node::with(isolated("br-one", "10.8.1.0/24")), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    world.output("ip", &["route", "add", "10.8.0.0/16", "via", "192.0.2.1"]);
    let pods: Vec<NetNs> = (0..4).map(|_| NetNs::new()).collect();
    let first = node.add("a", &pods[0], Value::Null).unwrap();
    node.add("b", &pods[1], Value::Null).unwrap();
    let (node, one) = node.beside("two", isolated("br-two", "10.8.2.0/24"));
    node.add("c", &pods[2], Value::Null).unwrap();
    let (node, two) = node.beside("open", conf("br-three", "10.8.3.0/24"));
    node.add("d", &pods[3], Value::Null).unwrap();
    pods.iter().chain([&world]).for_each(|netns| serve(netns, "0.0.0.0:1000"));
    let from_a = |to: &str, expect: bool| match expect {
        true => assert_eq!(connect(&pods[0], to), Ok("10.8.1.2".to_owned()), "{to}"),
        false => assert!(is_cut_off(&pods[0], to), "{to}"),
    };
    from_a("10.8.1.3:1000", true);
    from_a("192.0.2.2:1000", true);
    from_a("10.8.3.2:1000", true);
    from_a("10.8.2.2:1000", false);
    assert!(is_cut_off(&pods[2], "10.8.1.2:1000"));
    assert_eq!(connect(&world, "10.8.2.2:1000"), Ok("192.0.2.2".to_owned()));
    node.del("d", Some(&pods[3].path)).unwrap();
    let node = Node { list: one, ..node };
    node.check("a", &pods[0], Value::Null, &first).unwrap();
    node.host.output("nft", &["flush", "chain", "inet", "berth_isolation", "forward"]);
    let error = node.check("a", &pods[0], Value::Null, &first).unwrap_err();
    assert!(error.msg.contains("isolateNetworks: rule"), "{error}");
    node.del("a", Some(&pods[0].path)).unwrap();
    node.del("b", Some(&pods[1].path)).unwrap();
    let node = Node { list: two, ..node };
    node.del("c", Some(&pods[2].path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
    assert!(!node.host.output("nft", &["list", "tables"]).contains("berth"));
}

#[test]
fn duplicates_are_looked_for_on_demand() {
    if !privileged() {
        return;
    }
    let mut conf = conf("br0", "fd00:8::/64");
    conf["enabledad"] = true.into();
    let node = Node::with(conf);
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    let shown = pod.output("ip", &["-6", "addr", "show", "dev", "eth0", "scope", "global"]);
    assert!(
        shown.contains("fd00:8::2/64") && !shown.contains("tentative") && !shown.contains("nodad"),
        "{shown}"
    );
    node.check("a", &pod, Value::Null, &added).unwrap();
    // Somebody who does not ask has the next address.
    let squatter = NetNs::new();
    wire(&node.host, &squatter, ("192.0.2.1/24", "fd00:8::3/64"));
    node.host.output("ip", &["link", "set", "wire0", "master", "br0"]);
    let other = NetNs::new();
    let error = node.add("b", &other, Value::Null).err().unwrap();
    assert_eq!(error.code, ErrorCode::PLUGIN);
    assert!(error.msg.ends_with("another host has the address fd00:8::3"), "{error}");
    node.del("a", Some(&pod.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn the_containers_link_can_stay_down() {
    if !privileged() {
        return;
    }
    let node = Node::with(json!({"type": "bridge", "bridge": "br0", "disableContainerInterface": true}));
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    assert!(pod.output("ip", &["link", "show", "eth0"]).contains("state DOWN"));
    node.check("a", &pod, Value::Null, &added).unwrap();
    pod.output("ip", &["link", "set", "eth0", "up"]);
    node.check("a", &pod, Value::Null, &added).unwrap();
}

#[test]
fn an_automatic_subnet_meets_nothing_and_stays() {
    if !privileged() {
        return;
    }
    let mut conf = conf("br0", "auto");
    conf["ipam"]["avoid"] = json!(["172.20.0.0/16"]);
    let (node, world) = (Node::with(conf), NetNs::new());
    wire(&node.host, &world, ("172.17.9.1/24", "172.17.9.2/24"));
    node.host.output("ip", &["addr", "add", "172.18.0.1/32", "dev", "lo"]);
    node.host.output("ip", &["route", "add", "172.19.0.0/17", "via", "172.17.9.2", "table", "77"]);
    node.host.output("ip", &["route", "add", "0.0.0.0/1", "via", "172.17.9.2"]);
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    assert_eq!(
        added.json["ips"][0],
        json!({"address": "172.21.0.2/16", "gateway": "172.21.0.1", "interface": 2})
    );
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    // What comes later does not move it.
    node.host.output("ip", &["route", "add", "172.21.3.0/24", "via", "172.17.9.2"]);
    assert_eq!(node.add("a", &pod, Value::Null).unwrap().json["ips"][0]["gateway"], "172.21.0.1");
    node.del("a", Some(&pod.path)).unwrap();
    let mut other = self::conf("br1", "auto");
    other["ipam"]["avoid"] = json!(["172.20.0.0/16"]);
    let (node, _) = node.beside("other", other);
    assert_eq!(node.add("a", &pod, Value::Null).unwrap().json["ips"][0]["gateway"], "172.22.0.1");
}

#[test]
fn two_addresses_are_a_subnet() {
    if !privileged() {
        return;
    }
    let (node, pod) = (Node::with(conf("br0", "10.8.0.6/31")), NetNs::new());
    let added = node.add("a", &pod, Value::Null).unwrap();
    let expect = json!({"address": "10.8.0.7/31", "gateway": "10.8.0.6", "interface": 2});
    assert_eq!(added.json["ips"][0], expect);
    serve(&node.host, "0.0.0.0:1000");
    assert_eq!(connect(&pod, "10.8.0.6:1000"), Ok("10.8.0.7".to_owned()));
    node.check("a", &pod, Value::Null, &added).unwrap();
    let error = node.add("b", &NetNs::new(), Value::Null).err().unwrap();
    assert_eq!(error.code, ErrorCode::TRY_AGAIN_LATER);
    assert_eq!(node.whole(Verb::Status, None).unwrap_err().code, ErrorCode::NOT_AVAILABLE);
    node.del("a", Some(&pod.path)).unwrap();
    node.whole(Verb::Status, None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

/// Of ADDs at the same time on a bridge with an administrator's address, none finds another's gateway and takes it for
/// settled.
#[test]
fn no_add_comes_through_beside_a_foreign_gateway() {
    if !privileged() {
        return;
    }
    let node = Node::with(json!({"type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.6.0.0/24"}}));
    node.host.output("ip", &["link", "add", "br0", "type", "bridge"]);
    node.host.output("ip", &["addr", "add", "10.98.0.1/16", "dev", "br0"]);
    let pods: Vec<_> = (0..8).map(|index| (attachment(&format!("c{index}")), NetNs::new())).collect();
    let start = |(target, pod): &(Attachment, NetNs)| {
        node.start(0, Verb::Add, (target, Some(&pod.path)), Additions::default())
    };
    let running: Vec<_> = pods.iter().map(start).collect();
    for child in running {
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("already has an IP address different from 10.6.0.1/24"), "{told}");
    }
    let addresses = node.host.output("ip", &["-o", "-4", "addr", "show", "br0"]);
    assert!(addresses.contains("10.98.0.1/16") && !addresses.contains("10.6."), "{addresses}");
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn status_tells_that_pods_are_cut_off() {
    if !privileged() {
        return;
    }
    let node = Node::with(json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true,
        "ipam": {"type": "host-local", "subnet": "10.6.0.0/24"}}));
    let status = || node.whole(Verb::Status, None).map_err(|error| (error.code, error.msg));
    let limited = |end: &str| {
        let (code, msg) = status().unwrap_err();
        assert_eq!(code, ErrorCode::LIMITED_CONNECTIVITY, "{msg}");
        assert!(msg.ends_with(end), "{msg}");
    };
    assert_eq!(status(), Ok(()), "nobody is there, and ADD turns forwarding on");
    let pod = NetNs::new();
    node.add("a", &pod, Value::Null).unwrap();
    assert_eq!(status(), Ok(()));
    let forward = |value: &str| {
        node.host.output("sh", &["-c", &format!("echo {value} > /proc/sys/net/ipv4/ip_forward")])
    };
    forward("0");
    limited("forwarding is off (ipv4/ip_forward), and pods have br0 as their gateway");
    forward("1");
    assert_eq!(status(), Ok(()));
    node.host.output("nft", &["delete", "chain", "inet", "berth_masquerade", "postrouting"]);
    limited("nf_tables table berth_masquerade has lost its chain postrouting");
    node.del("a", Some(&pod.path)).unwrap();
    forward("0");
    assert_eq!(status(), Ok(()));
}

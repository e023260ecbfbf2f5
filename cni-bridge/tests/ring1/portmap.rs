//! portmap chained after bridge.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use cni_bridge::net::conntrack::{Flow, forget};
use cni_bridge::net::socket::Socket;
use proto::cni::ErrorCode;
use serde_json::{Value, json};

use super::node::{Added, NetNs, Node, privileged};
use super::wire::{connect, serve, wire};

fn ports(host: u16) -> Value {
    json!([{"hostPort": host, "containerPort": 80, "protocol": "tcp"}])
}

#[test]
fn a_port_is_reached_from_everywhere() {
    if !privileged() {
        return;
    }
    // With and without bridged packets passing through the host's rules.
    reached_from_everywhere("1");
    reached_from_everywhere("0");
}

fn reached_from_everywhere(bridge_netfilter: &str) {
    let node = Node::new(|_| {});
    let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    node.host.output("sh", &["-c", &format!("[ ! -e {switch} ] || echo {bridge_netfilter} > {switch}")]);
    let (pod, neighbour, world) = (NetNs::new(), NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    let added = node.add("a", &pod, ports(12000)).unwrap();
    node.add("b", &neighbour, Value::Null).unwrap();
    serve(&pod, "0.0.0.0:80");
    let check = |from: &NetNs, to: &str, expect: Result<&str, ()>| {
        assert_eq!(connect(from, to).map_err(drop), expect.map(str::to_owned), "to {to}");
    };
    check(&node.host, "127.0.0.1:12000", Ok("10.211.64.1"));
    check(&node.host, "192.0.2.1:12000", Ok("192.0.2.1"));
    check(&node.host, "10.211.64.1:12000", Ok("10.211.64.1"));
    check(&world, "192.0.2.1:12000", Ok("192.0.2.2"));
    check(&neighbour, "192.0.2.1:12000", Ok("10.211.64.1"));
    check(&pod, "192.0.2.1:12000", Ok("10.211.64.1"));
    check(&neighbour, "10.211.64.2:80", Ok("10.211.64.3"));
    // Not this host's address: passed by.
    check(&node.host, "192.0.2.2:12000", Err(()));
    check(&pod, "192.0.2.2:12000", Err(()));
    node.check("a", &pod, ports(12000), &added).unwrap();
    node.del("a", None).unwrap();
    check(&node.host, "127.0.0.1:12000", Err(()));
    check(&world, "192.0.2.1:12000", Err(()));
}

#[test]
fn the_hosts_loopback_stays_closed_to_pods() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let pod = NetNs::new();
    node.add("a", &pod, ports(12000)).unwrap();
    serve(&node.host, "127.0.0.1:2222");
    assert_eq!(connect(&node.host, "127.0.0.1:2222"), Ok("127.0.0.1".to_owned()));
    // A pod may send packets for 127.0.0.1 to its gateway.
    pod.output("ip", &["route", "add", "127.0.0.1", "via", "10.211.64.1", "table", "local"]);
    pod.output("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet"]);
    assert!(connect(&pod, "127.0.0.1:2222").is_err());
    node.del("a", None).unwrap();
    assert!(connect(&pod, "127.0.0.1:2222").is_err());
    assert!(node.host.output("nft", &["list", "ruleset"]).contains("berth_localnet"));
}

#[test]
fn host_addresses_and_udp() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    let ports = json!([
        {"hostPort": 1000, "containerPort": 80, "hostIP": "127.0.0.1"},
        {"hostPort": 1001, "containerPort": 80, "hostIP": "192.0.2.1"},
        {"hostPort": 1002, "containerPort": 53, "protocol": "udp"},
    ]);
    node.add("a", &pod, ports).unwrap();
    serve(&pod, "0.0.0.0:80");
    assert!(connect(&node.host, "127.0.0.1:1000").is_ok());
    assert!(connect(&world, "192.0.2.1:1000").is_err());
    assert!(connect(&world, "192.0.2.1:1001").is_ok());
    assert!(connect(&node.host, "127.0.0.1:1001").is_err());
    assert!(connect(&node.host, "127.0.0.1:1002").is_err());
    pod.run(|| {
        let server = UdpSocket::bind("0.0.0.0:53").unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 16];
            while let Ok((length, from)) = server.recv_from(&mut bytes) {
                let _ = server.send_to(&bytes[..length], from);
            }
        });
    });
    let echoed = world.run(|| {
        let client = UdpSocket::bind("192.0.2.2:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        client.send_to(b"hello", "192.0.2.1:1002").unwrap();
        let mut bytes = [0; 16];
        client.recv(&mut bytes).map(|length| bytes[..length].to_vec()).unwrap()
    });
    assert_eq!(echoed, b"hello");
}

/// How many UDP flows a pod answers.
fn flows_of(node: &Node, pod: IpAddr) -> usize {
    node.host.run(move || {
        let found = std::cell::Cell::new(0);
        let count = |flow: &Flow| {
            found.set(found.get() + usize::from(flow.answers == pod));
            false
        };
        forget(&mut Socket::netfilter().unwrap(), (17, pod), &count).unwrap();
        found.get()
    })
}

/// A client that keeps sending from one port reaches each pod that has the host port in turn.
#[test]
fn udp_flows_follow_the_port() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let (first, second, world) = (NetNs::new(), NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    // The wire carries and both ends know each other: no datagram waits to be sent later.
    serve(&node.host, "192.0.2.1:1000");
    assert!(connect(&world, "192.0.2.1:1000").is_ok());
    let client = world.run(|| UdpSocket::bind("192.0.2.2:4000").unwrap());
    let ask_for = |milliseconds| {
        client.set_read_timeout(Some(Duration::from_millis(milliseconds))).unwrap();
        client.send_to(b"who", "192.0.2.1:1002").unwrap();
        let mut bytes = [0; 16];
        client.recv(&mut bytes).ok().map(|length| String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    let answer = |pod: &NetNs, name: &'static str| {
        pod.run(move || {
            let server = UdpSocket::bind("0.0.0.0:53").unwrap();
            std::thread::spawn(move || {
                let mut bytes = [0; 16];
                while let Ok((_, from)) = server.recv_from(&mut bytes) {
                    let _ = server.send_to(name.as_bytes(), from);
                }
            });
        });
    };
    let ports = json!([{"hostPort": 1002, "containerPort": 53, "protocol": "udp"}]);
    assert_eq!(ask_for(500), None);
    let added = node.add("a", &first, ports.clone()).unwrap();
    answer(&first, "first");
    assert_eq!(ask_for(10_000).as_deref(), Some("first"));
    let pod = added.ip4();
    assert_eq!(flows_of(&node, pod), 1);
    node.del("a", Some(&first.path)).unwrap();
    // A child of DEL's forgets them.
    let deadline = Instant::now() + Duration::from_secs(10);
    while flows_of(&node, pod) > 0 {
        assert!(Instant::now() < deadline, "flows to the pod are still tracked");
        std::thread::yield_now();
    }
    assert_eq!(ask_for(500), None);
    node.add("b", &second, ports).unwrap();
    answer(&second, "second");
    assert_eq!(ask_for(10_000).as_deref(), Some("second"));
}

#[test]
fn ipv6_ports() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| {
        json["plugins"][0]["ipam"]["ranges"] =
            json!([[{"subnet": "10.211.64.0/20"}], [{"subnet": "fd00:64::/64"}]]);
    });
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("2001:db8::1/64", "2001:db8::2/64"));
    let added = node.add("a", &pod, ports(12000)).unwrap();
    serve(&pod, "[::]:80");
    assert_eq!(connect(&world, "[2001:db8::1]:12000"), Ok("2001:db8::2".to_owned()));
    assert_eq!(connect(&node.host, "[2001:db8::1]:12000"), Ok("2001:db8::1".to_owned()));
    assert_eq!(connect(&node.host, "127.0.0.1:12000"), Ok("::ffff:10.211.64.1".to_owned()));
    assert!(connect(&node.host, "[::1]:12000").is_err());
    assert_eq!(connect(&pod, "[2001:db8::1]:12000"), Ok("fd00:64::1".to_owned()));
    node.check("a", &pod, ports(12000), &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_taken_port_names_its_holder() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let (a, b) = (NetNs::new(), NetNs::new());
    node.add(
        "a",
        &a,
        json!([{"hostPort": 1000, "containerPort": 80},
                              {"hostPort": 1001, "containerPort": 80, "hostIP": "127.0.0.1"}]),
    )
    .unwrap();
    let before = node.leftovers();
    let check = |ports: Value, expect: Option<&str>| {
        let outcome = node.add("b", &b, ports);
        let found = outcome.err().map(|error| {
            assert_eq!(error.code, ErrorCode::PLUGIN);
            error.msg
        });
        assert_eq!(found.as_deref(), expect);
        node.del("b", Some(&b.path)).unwrap();
        assert_eq!(node.leftovers(), before);
    };
    let taken = |what: &str| format!("plugin portmap: {what} is already published for berth/a/eth0");
    check(
        json!([{"hostPort": 1002, "containerPort": 1}, {"hostPort": 1000, "containerPort": 1}]),
        Some(&taken("tcp host port 1000")),
    );
    check(
        json!([{"hostPort": 1000, "containerPort": 1, "hostIP": "10.0.0.1"}]),
        Some(&taken("tcp port 1000 of host address 10.0.0.1")),
    );
    check(json!([{"hostPort": 1001, "containerPort": 1}]), Some(&taken("tcp host port 1001")));
    check(json!([{"hostPort": 1000, "containerPort": 1, "protocol": "udp"}]), None);
    check(json!([{"hostPort": 1001, "containerPort": 1, "hostIP": "127.0.0.2"}]), None);
}

#[test]
fn check_finds_damage() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let check = |command: &[&str]| {
        let pod = NetNs::new();
        let added = node.add("a", &pod, ports(12000)).unwrap();
        node.check("a", &pod, ports(12000), &added).unwrap();
        node.host.output(command[0], &command[1..]);
        let error = node.check("a", &pod, ports(12000), &added).unwrap_err();
        assert!(error.msg.contains("published ports"), "{error}");
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), [""; 0]);
    };
    check(&["nft", "flush", "map", "inet", "berth_portmap", "ports4"]);
    check(&["nft", "flush", "map", "inet", "berth_portmap", "pods4"]);
    check(&["nft", "flush", "chain", "inet", "berth_portmap", "output"]);
    check(&["nft", "delete", "table", "inet", "berth_portmap"]);
    check(&["nft", "delete", "table", "inet", "berth_localnet"]);
    check(&["sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/berth0/route_localnet"]);
}

#[test]
fn ranges_lead_port_to_port() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| json["plugins"][1]["backend"] = "iptables".into());
    let (pod, other) = (NetNs::new(), NetNs::new());
    let range = json!([{"hostPort": 20000, "containerPort": 10000, "range": 5000}]);
    let added = node.add("a", &pod, range.clone()).unwrap();
    for port in [10000, 12500, 14999] {
        serve(&pod, &format!("0.0.0.0:{port}"));
        assert!(connect(&node.host, &format!("127.0.0.1:{}", port + 10000)).is_ok(), "{port}");
    }
    assert!(connect(&node.host, "127.0.0.1:25000").is_err());
    node.check("a", &pod, range, &added).unwrap();
    let error = node.add("b", &other, json!([{"hostPort": 24999, "containerPort": 1}])).err().unwrap();
    let holder = "plugin portmap: tcp host port 24999 is already published for berth/a/eth0";
    assert_eq!(error.msg, holder);
    node.del("b", None).unwrap();
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn conditions_choose_packets() {
    if !privileged() {
        return;
    }
    let mut node = Node::new(|json| {
        json["plugins"][1]["conditionsV4"] = json!(["!", "-s", "192.0.2.2", "-d", "192.0.2.0/24"]);
    });
    let (pod, other, world) = (NetNs::new(), NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    world.output("ip", &["addr", "add", "192.0.2.3/24", "dev", "wire1"]);
    let published = json!([{"hostPort": 1000, "containerPort": 80},
        {"hostPort": 1001, "containerPort": 80, "hostIP": "192.0.2.1"}]);
    let added = node.add("a", &pod, published.clone()).unwrap();
    serve(&pod, "0.0.0.0:80");
    let reach = |port: u16| {
        let from = |source: &'static str| {
            let _ = world.output("ip", &["route", "replace", "192.0.2.1", "dev", "wire1", "src", source]);
            connect(&world, &format!("192.0.2.1:{port}")).is_ok()
        };
        (from("192.0.2.2"), from("192.0.2.3"))
    };
    assert_eq!((reach(1000), reach(1001)), ((false, true), (false, true)));
    assert!(connect(&node.host, "127.0.0.1:1000").is_err(), "127.0.0.1 is none of the destinations");
    assert!(connect(&node.host, "192.0.2.1:1000").is_ok());
    node.check("a", &pod, published.clone(), &added).unwrap();
    // A port is held, under conditions or without.
    let plain = {
        let mut json: Value = serde_json::from_slice(&node.list.to_bytes()).unwrap();
        json["plugins"][1].as_object_mut().unwrap().remove("conditionsV4");
        proto::cni::NetConfList::parse(json.to_string().as_bytes()).unwrap()
    };
    let conditional = std::mem::replace(&mut node.list, plain);
    let taken = |node: &Node, name: &str, pod: &NetNs, port: u16, holder: &str| {
        let error = node.add(name, pod, ports(port)).err().unwrap();
        let expect =
            format!("plugin portmap: tcp host port {port} is already published for berth/{holder}/eth0");
        assert_eq!(error.msg, expect);
        node.del(name, Some(&pod.path)).unwrap();
    };
    taken(&node, "b", &other, 1000, "a");
    taken(&node, "b", &other, 1001, "a");
    node.add("b", &other, ports(1002)).unwrap();
    node.list = conditional;
    let third = NetNs::new();
    taken(&node, "c", &third, 1002, "b");
    taken(&node, "c", &third, 1001, "a");
    node.host.output("nft", &["flush", "map", "inet", "berth_portmap_if", "when4"]);
    let error = node.check("a", &pod, published, &added).unwrap_err();
    assert!(error.msg.contains("published ports: an element of map when4 is missing"), "{error}");
    node.del("a", None).unwrap();
    node.del("b", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_free_port_is_found_and_told() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let asked = json!([{"hostPort": 0, "containerPort": 80}, {"hostPort": 0, "containerPort": 53, "protocol": "udp"}]);
    let (a, b) = (NetNs::new(), NetNs::new());
    let told = |pod: &NetNs, name: &str| {
        let added = node.add(name, pod, asked.clone()).unwrap();
        node.check(name, pod, asked.clone(), &added).unwrap();
        // A runtime that drops what it does not know.
        let mut plain = added.json.clone();
        plain.as_object_mut().unwrap().remove("berth.dev/portMappings");
        let plain = Added { json: plain, result: added.result.clone() };
        node.check(name, pod, asked.clone(), &plain).unwrap();
        let ports: Vec<u16> = added.result.port_mappings.iter().map(|port| port.host_port).collect();
        assert_eq!(added.result.port_mappings[1].protocol, "udp");
        ports
    };
    let first = told(&a, "a");
    serve(&a, "0.0.0.0:80");
    assert!(connect(&node.host, &format!("127.0.0.1:{}", first[0])).is_ok());
    assert_ne!(told(&b, "b")[0], first[0]);
    node.del("a", Some(&a.path)).unwrap();
    assert_eq!(told(&a, "a"), first, "the same again");
    // Not a port that somebody listens on, or has.
    node.del("a", Some(&a.path)).unwrap();
    serve(&node.host, &format!("0.0.0.0:{}", first[0]));
    assert_ne!(told(&a, "a")[0], first[0]);
    node.del("a", None).unwrap();
    node.del("b", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn without_ports_nothing_happens() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let pod = NetNs::new();
    node.add("a", &pod, json!([])).unwrap();
    assert!(!node.host.output("nft", &["list", "ruleset"]).contains("berth_portmap"));
    node.del("a", None).unwrap();
}

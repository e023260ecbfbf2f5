//! portmap chained after bridge.

use std::net::UdpSocket;
use std::time::Duration;

use proto::cni::ErrorCode;
use serde_json::{Value, json};

use super::node::{NetNs, Node, privileged};
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
    let client = world.run(|| {
        let client = UdpSocket::bind("192.0.2.2:4000").unwrap();
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        client
    });
    let ask = || {
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
    assert_eq!(ask(), None);
    node.add("a", &first, ports.clone()).unwrap();
    answer(&first, "first");
    assert_eq!(ask().as_deref(), Some("first"));
    node.del("a", Some(&first.path)).unwrap();
    assert_eq!(ask(), None);
    node.add("b", &second, ports).unwrap();
    answer(&second, "second");
    assert_eq!(ask().as_deref(), Some("second"));
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

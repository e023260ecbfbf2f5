//! Pods with the privilege to change their own network, and what they cannot do to the host and to others with it.

use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sockopt};
use serde_json::{Value, json};

use super::macvlan::{changed, on_wire};
use super::node::{NetNs, Node, privileged};

/// Has a pod announce itself as the router of everything.
fn announce(pod: &NetNs) {
    pod.run(|| {
        let socket =
            rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
        sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
        let index = rustix::net::netdevice::name_to_index(&socket, "eth0").unwrap();
        let here = std::net::SocketAddrV6::new("fe80::66".parse().unwrap(), 0, 0, index);
        rustix::net::bind(&socket, &here).unwrap();
        let all = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
        // Router advertisement, hop limit 64, lifetime 1800 s.
        let message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::net::sendto(&socket, &message, SendFlags::empty(), &all).unwrap();
    });
}

fn wait(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The pod of a new node announces, behind the host's link `link`, and is not obeyed.
fn is_not_obeyed(node: &Node, link: &dyn Fn(&Value) -> String) {
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    let link = link(&added.json);
    pod.output("sh", &["-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6"]);
    pod.output("ip", &["addr", "add", "fe80::66/64", "dev", "eth0", "nodad"]);
    let heard = || {
        let counts = node.host.output("cat", &[&format!("/proc/net/dev_snmp6/{link}")]);
        let count =
            counts.lines().find_map(|line| line.strip_prefix("Icmp6InRouterAdvertisements")).unwrap();
        count.trim().parse::<u64>().unwrap()
    };
    let routes = || node.host.output("ip", &["-6", "route", "show", "default"]);
    let before = heard();
    announce(&pod);
    wait("the host hears the pod", || heard() > before);
    assert_eq!(routes(), "", "{link}");
    // The same announcement is obeyed by a host that does not know better.
    node.host.output("sh", &["-c", &format!("echo 2 > /proc/sys/net/ipv6/conf/{link}/accept_ra")]);
    announce(&pod);
    wait("the announcement is valid", || routes().contains("via fe80::66"));
    node.host.output("ip", &["-6", "route", "flush", "default"]);
    node.del("a", Some(&pod.path)).unwrap();
}

#[test]
fn the_host_obeys_no_router_in_a_pod() {
    if !privileged() {
        return;
    }
    let ipam = json!({"type": "host-local", "subnet": "10.6.0.0/24"});
    let bridge = json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": ipam});
    let node = Node::with(bridge);
    is_not_obeyed(&node, &|_| "br0".to_owned());
    // One that an administrator made, on which announcements were welcome: by now they are again.
    is_not_obeyed(&node, &|_| "br0".to_owned());
    let first = |added: &Value| added["interfaces"][0]["name"].as_str().unwrap().to_owned();
    is_not_obeyed(&Node::with(json!({"type": "ptp", "ipam": ipam})), &first);
    let (node, _world) = on_wire(changed(|conf| conf["hostShim"] = json!(["192.0.2.250"])));
    let shim = |_: &Value| node.leftovers().into_iter().find(|name| name.starts_with("shim")).unwrap();
    is_not_obeyed(&node, &shim);
}

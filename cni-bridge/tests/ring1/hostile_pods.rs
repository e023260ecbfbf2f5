//! Pods with the privilege to change their own network, and what they cannot do to the host and to others with it.

use std::time::{Duration, Instant};

use cni_bridge::net::device;
use cni_bridge::net::socket::Socket;
use proto::cni::CniError;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sockopt};
use serde_json::{Value, json};

use super::macvlan::{changed, on_wire};
use super::node::{NetNs, Node, privileged};
use super::wire::{is_cut_off, serve};

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
        let count = counts.lines().find_map(|line| line.strip_prefix("Icmp6InRouterAdvertisements")).unwrap();
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
fn a_pod_obeys_no_router_in_another() {
    if !privileged() {
        return;
    }
    let check = |subnets: Value| {
        let ipam = json!({"type": "host-local", "ranges": subnets});
        let node = Node::with(json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": ipam}));
        let (hostile, pod) = (NetNs::new(), NetNs::new());
        node.add("a", &hostile, Value::Null).unwrap();
        node.add("b", &pod, Value::Null).unwrap();
        let heard = || {
            let counts = pod.output("cat", &["/proc/net/dev_snmp6/eth0"]);
            counts
                .lines()
                .any(|line| line.starts_with("Icmp6InRouterAdvertisements") && !line.ends_with("\t0"))
        };
        let routes = || pod.output("ip", &["-6", "route", "show", "default"]);
        hostile.output("ip", &["addr", "add", "fe80::66/64", "dev", "eth0", "nodad"]);
        let before = routes();
        announce(&hostile);
        wait("the pod hears the other", heard);
        assert_eq!(routes(), before, "{subnets}");
    };
    check(json!([[{"subnet": "10.6.0.0/24"}]]));
    check(json!([[{"subnet": "10.6.0.0/24"}], [{"subnet": "fd00:6::/64"}]]));
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

#[test]
fn another_address_is_no_way_out_of_an_isolated_network() {
    if !privileged() {
        return;
    }
    let conf = |bridge: &str, subnet: &str| {
        json!({"type": "bridge", "bridge": bridge, "isDefaultGateway": true, "isolateNetworks": true,
            "ipam": {"type": "host-local", "subnet": subnet}})
    };
    let node = Node::with(conf("br-one", "10.8.1.0/24"));
    let (a, b) = (NetNs::new(), NetNs::new());
    node.add("a", &a, Value::Null).unwrap();
    let (node, one) = node.beside("two", conf("br-two", "10.8.2.0/24"));
    node.add("b", &b, Value::Null).unwrap();
    serve(&a, "0.0.0.0:1000");
    serve(&b, "0.0.0.0:1000");
    a.output("ip", &["addr", "add", "10.8.1.77/24", "dev", "eth0"]);
    a.output("ip", &["route", "add", "10.8.2.0/24", "via", "10.8.1.1", "src", "10.8.1.77"]);
    assert!(is_cut_off(&a, "10.8.2.2:1000"), "from an address that nobody gave");
    b.output("ip", &["addr", "add", "10.8.2.77/24", "dev", "eth0"]);
    assert!(is_cut_off(&a, "10.8.2.77:1000"), "to an address that nobody gave");
    node.del("b", Some(&b.path)).unwrap();
    let rules = node.host.output("nft", &["list", "table", "inet", "berth_isolation"]);
    assert!(rules.contains("br-one") && !rules.contains("br-two"), "{rules}");
    let node = Node { list: one, ..node };
    node.del("a", Some(&a.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_pair_of_its_own_does_not_make_another_pods_link_a_pods() {
    if !privileged() {
        return;
    }
    let node = Node::with(json!({"type": "bridge", "bridge": "br0",
        "ipam": {"type": "host-local", "subnet": "10.6.0.0/24"}}));
    let (a, b) = (NetNs::new(), NetNs::new());
    node.add("a", &a, Value::Null).unwrap();
    let victim = node.add("b", &b, Value::Null).unwrap().result.interfaces[1].name.clone();
    let behind = |pod: &NetNs| {
        let path = pod.path.clone();
        let found = node.host.run(move || {
            let netns = cni_bridge::net::netns::NetNs::open(&path).unwrap();
            device::host_end::<CniError>(&mut Socket::route().unwrap(), &netns, "eth0").unwrap()
        });
        found.map(|link| link.name)
    };
    assert_eq!(behind(&b).as_ref(), Some(&victim));
    assert!(behind(&a).is_some_and(|own| own != victim));
    let index = |netns: &NetNs, link: &str| {
        let shown = netns.output("ip", &["-o", "link", "show", link]);
        shown.split(':').next().unwrap().to_owned()
    };
    let (inside, outside) = (index(&b, "eth0"), index(&node.host, &victim));
    a.output("ip", &["link", "del", "eth0"]);
    // Its two ends have the indexes of the other pod's pair.
    let pair =
        ["link", "add", "eth0", "index", &inside, "type", "veth", "peer", "name", "eth1", "index", &outside];
    a.output("ip", &pair);
    assert_eq!(behind(&a), None);
}

#[test]
fn an_address_behind_one_port_does_not_move_to_another() {
    if !privileged() {
        return;
    }
    let node = Node::with(json!({"type": "bridge", "bridge": "br0", "macspoofchk": true,
        "ipam": {"type": "host-local", "subnet": "10.6.0.0/24"}}));
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    let port = added.result.interfaces[1].name.as_str();
    let entries = node.host.output("bridge", &["fdb", "show", "dev", port]);
    let own = entries.lines().find(|line| line.starts_with(&added.result.interfaces[2].mac)).unwrap();
    assert!(own.contains("sticky"), "{own}");
}

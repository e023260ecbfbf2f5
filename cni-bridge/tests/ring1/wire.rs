//! What tests look at a node's network with: connections, wires between namespaces, and the kernel's features.

use std::io::Write;
use std::path::Path;

use cni_bridge::net::link;
use cni_bridge::net::socket::Socket;
use cni_bridge::net::sublink::{self, Kind, SubLink};
use netlink_packet_route::link::IpVlanMode;

use super::node::{NetNs, privileged};

/// Serves TCP on `address` inside `netns`: answers each connection with the peer's address as it sees it.
pub fn serve(netns: &NetNs, address: &str) {
    let address = address.to_owned();
    netns.run(move || {
        let listener = std::net::TcpListener::bind(&address).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip().to_string();
                let _ = stream.write_all(peer.as_bytes());
            }
        });
    });
}

/// Connects from inside `netns`; what the server saw as the source.
pub fn connect(netns: &NetNs, address: &str) -> Result<String, std::io::ErrorKind> {
    let address: std::net::SocketAddr = address.parse().unwrap();
    netns.run(move || {
        let limit = std::time::Duration::from_secs(6);
        let mut stream =
            std::net::TcpStream::connect_timeout(&address, limit).map_err(|error| error.kind())?;
        stream.set_read_timeout(Some(limit)).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).map_err(|error| error.kind())?;
        Ok(text)
    })
}

/// Whether nothing that is sent from inside `netns` to `address` is answered.
pub fn is_cut_off(netns: &NetNs, address: &str) -> bool {
    let address: std::net::SocketAddr = address.parse().unwrap();
    netns.run(move || {
        std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(400)).is_err()
    })
}

/// A feature of the kernel that not every machine has.
#[derive(Debug, Clone, Copy)]
pub enum Feature {
    Vlan,
    IpVlan,
    Dummy,
    BridgeVlans,
}

/// Whether the test can run: with privilege, and on a kernel that has `feature`; says so where not. What the kernel
/// lacks is no failure even where all tests are required: they run in the guest.
pub fn kernel_has(feature: Feature) -> bool {
    if !privileged() {
        return false;
    }
    let has = is_there(feature);
    if !has {
        // The guest, which is slow, has them all.
        let guest = std::env::var_os("E2E_SLOWNESS").is_some();
        let what = match feature {
            Feature::Vlan => "VLANs (module 8021q)",
            Feature::IpVlan => "ipvlan (module ipvlan)",
            Feature::Dummy => "links that lead nowhere (module dummy)",
            Feature::BridgeVlans => "VLANs on bridges (CONFIG_BRIDGE_VLAN_FILTERING)",
        };
        assert!(!guest, "the guest's kernel does not have {what}");
        eprintln!("SKIPPED: the kernel does not have {what}; `make test-guest` runs this test");
    }
    has
}

/// Whether the kernel has `feature`.
pub fn is_there(feature: Feature) -> bool {
    NetNs::new().run(move || {
        let mut socket = Socket::route().unwrap();
        let mut on_top = |kind| {
            sublink::create_nowhere(&mut socket, "below", None).unwrap();
            let lower = link::get(&mut socket, "below").unwrap().unwrap().index;
            let wanted = SubLink { name: "above", lower, netns: None, mtu: None, mac: None, kind };
            sublink::create(&mut socket, &wanted).is_ok()
        };
        match feature {
            Feature::Vlan => on_top(Kind::Vlan(5)),
            Feature::IpVlan => on_top(Kind::IpVlan(IpVlanMode::L2)),
            Feature::Dummy => {
                sublink::create_nowhere(&mut socket, "below", None).unwrap();
                link::get(&mut socket, "below").unwrap().unwrap().kind == "dummy"
            }
            Feature::BridgeVlans => {
                link::create_bridge(&mut socket, "br0", link::Mac([2; 6]), None).unwrap();
                let bridge = link::get(&mut socket, "br0").unwrap().unwrap();
                socket.apply(&[link::set_vlan_filtering(&bridge)]).is_ok()
            }
        }
    })
}

/// Whether packets to `address` get lost: no answer comes within a short time, good or bad.
pub fn is_lost(netns: &NetNs, address: &str) -> bool {
    let address: std::net::SocketAddr = address.parse().unwrap();
    netns.run(move || {
        let limit = std::time::Duration::from_millis(700);
        let outcome = std::net::TcpStream::connect_timeout(&address, limit);
        outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
    })
}

/// Whether a program that the test looks with is there; says so where not.
pub fn has_program(name: &str) -> bool {
    let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    if dirs.iter().any(|dir| Path::new(dir).join(name).exists()) {
        return true;
    }
    assert!(std::env::var("E2E_REQUIRE").as_deref() != Ok("1"), "E2E_REQUIRE=1, but there is no {name}");
    eprintln!("SKIPPED: there is no {name}");
    false
}

/// Joins two namespaces by a veth pair, one end `outer` in the first with `first`, the other in the second.
pub fn wire(first: &NetNs, second: &NetNs, addresses: (&str, &str)) {
    let (mine, theirs): (ipnet::IpNet, ipnet::IpNet) =
        (addresses.0.parse().unwrap(), addresses.1.parse().unwrap());
    let path = second.path.clone();
    let up = |name: &'static str, address: ipnet::IpNet| {
        let mut socket = Socket::route().unwrap();
        let link = link::get(&mut socket, name).unwrap().unwrap();
        socket.apply(&[cni_bridge::net::addr::add(&link, address), link::set_up(&link)]).unwrap();
    };
    first.run(move || {
        let netns = cni_bridge::net::netns::NetNs::open(&path).unwrap();
        let pair = link::VethPair {
            host: "wire0",
            peer: "wire1",
            peer_netns: netns.raw_fd(),
            mtu: None,
            peer_mac: None,
            group: 0,
        };
        link::create_veth(&mut Socket::route().unwrap(), &pair).unwrap();
        up("wire0", mine);
    });
    second.run(move || up("wire1", theirs));
}

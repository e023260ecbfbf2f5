//! Tracked flows that are forgotten by what they have in common.

use std::cell::RefCell;
use std::net::{IpAddr, UdpSocket};

use cni_bridge::net::conntrack::{Flow, Like, forget, forget_alike};
use cni_bridge::net::socket::Socket;

use super::node::{NetNs, privileged};

const UDP: u8 = 17;
/// Whom datagrams are sent to.
const AIMS: [&str; 4] = ["127.0.0.1:5001", "127.0.0.2:5001", "127.0.0.1:5002", "[::1]:5001"];

/// The aims of the flows that there are.
fn flows(socket: &mut Socket) -> Vec<String> {
    let found = RefCell::new(Vec::new());
    let note = |flow: &Flow| {
        let aim = std::net::SocketAddr::new(flow.answers, flow.port).to_string();
        found.borrow_mut().extend(AIMS.contains(&&aim[..]).then_some(aim));
        false
    };
    for family in ["0.0.0.0", "::"] {
        forget(socket, (UDP, family.parse().unwrap()), &note).unwrap();
    }
    found.into_inner()
}

#[test]
fn only_flows_that_are_alike_are_forgotten() {
    if !privileged() {
        return;
    }
    let check = |family: &str, like: Like, expect: &[&str]| {
        let host = NetNs::new();
        host.output("ip", &["link", "set", "lo", "up"]);
        let rules = "add table inet t; add chain inet t o { type filter hook output priority 0; }; \
            add rule inet t o ct state new accept";
        host.output("nft", &[rules]);
        let family: IpAddr = family.parse().unwrap();
        let mut left = host.run(move || {
            for aim in AIMS {
                let from = if aim.starts_with('[') { "[::1]:0" } else { "127.0.0.9:0" };
                UdpSocket::bind(from).unwrap().send_to(b"x", aim).unwrap();
            }
            let socket = &mut Socket::netfilter().unwrap();
            assert_eq!(flows(socket).len(), AIMS.len());
            forget_alike(socket, (UDP, family), like).unwrap();
            flows(socket)
        });
        left.sort();
        let mut expect = expect.to_vec();
        expect.sort_unstable();
        assert_eq!(left, expect, "{like:?}");
    };
    let address = |text: &str| text.parse().unwrap();
    let [first, second, third, six] = AIMS;
    check("0.0.0.0", Like::AimedAt(5001, None), &[third, six]);
    check("0.0.0.0", Like::AimedAt(5001, Some(address("127.0.0.2"))), &[first, third, six]);
    check("::", Like::AimedAt(5001, None), &[first, second, third]);
    check("::", Like::AnsweredBy(address("::1")), &[first, second, third]);
    check("0.0.0.0", Like::AnsweredBy(address("127.0.0.1")), &[second, six]);
    check("0.0.0.0", Like::AimedAt(5003, None), &AIMS);
}

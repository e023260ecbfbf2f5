//! Ports of SCTP. Their rules can be made on every kernel; traffic needs the protocol.

use serde_json::json;

use crate::node::{NetNs, Node, privileged};
use crate::wire::wire;

/// A TCP-like socket of SCTP inside a namespace; `None` where the kernel lacks the protocol.
fn sctp(netns: &NetNs) -> Option<rustix::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    netns.run(|| match socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)) {
        Ok(socket) => Some(socket),
        Err(rustix::io::Errno::PROTONOSUPPORT) => None,
        Err(errno) => panic!("making a socket of SCTP: {errno}"),
    })
}

#[test]
fn sctp_ports() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    let ports = json!([{"hostPort": 3868, "containerPort": 3868, "protocol": "sctp"}]);
    let added = node.add("a", &pod, ports.clone()).unwrap();
    node.check("a", &pod, ports, &added).unwrap();
    let shown = node.host.output("nft", &["list", "map", "inet", "berth_portmap", "ports4"]);
    assert!(shown.contains("sctp . 3868"), "{shown}");
    match (sctp(&pod), sctp(&world)) {
        (Some(server), Some(client)) => {
            use rustix::net::{RecvFlags, SendFlags};
            use rustix::net::{accept, bind, connect, listen, recv, send};
            let any: std::net::SocketAddr = "0.0.0.0:3868".parse().unwrap();
            bind(&server, &any).unwrap();
            listen(&server, 1).unwrap();
            let serving = std::thread::spawn(move || {
                let peer = accept(&server).unwrap();
                send(&peer, b"hello", SendFlags::empty()).unwrap();
            });
            let published: std::net::SocketAddr = "192.0.2.1:3868".parse().unwrap();
            connect(&client, &published).unwrap();
            let mut bytes = [0; 16];
            let (_, length) = recv(&client, &mut bytes[..], RecvFlags::empty()).unwrap();
            assert_eq!(&bytes[..length], b"hello");
            serving.join().unwrap();
        }
        _ => eprintln!("SKIPPED: traffic of SCTP, which this kernel lacks"),
    }
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

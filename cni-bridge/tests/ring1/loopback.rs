//! loopback.

use proto::cni::Verb;
use proto::cni::runtime::Additions;
use serde_json::json;

use super::node::{NetNs, Node, attachment, privileged};

#[test]
fn lo_comes_up_and_goes_down() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| json["plugins"] = json!([{"type": "loopback"}]));
    let pod = NetNs::new();
    let target = attachment("a");
    let call = |verb| node.call(0, verb, (&target, Some(&pod.path)), Additions::default());
    assert!(call(Verb::Check).is_err());
    let added = call(Verb::Add).unwrap().unwrap();
    assert_eq!(added.result.interfaces[0].name, "lo");
    let addresses: Vec<String> = added.result.ips.iter().map(|ip| ip.address.to_string()).collect();
    assert_eq!(addresses[0], "127.0.0.1/8");
    call(Verb::Check).unwrap();
    pod.output("ip", &["addr", "del", "127.0.0.1/8", "dev", "lo"]);
    let error = call(Verb::Check).err().unwrap();
    assert!(error.msg.ends_with("lo lacks the address 127.0.0.1/8"), "{error}");
    call(Verb::Del).unwrap();
    assert!(call(Verb::Check).is_err());
    node.call(0, Verb::Del, (&target, None), Additions::default()).unwrap();
    node.call(0, Verb::Del, (&target, Some("/absent".as_ref())), Additions::default()).unwrap();
}

//! Ports of families that a pod has, and that it lacks.

use serde_json::json;

use super::node::{NetNs, Node, privileged};
use super::wire::{connect, serve, wire};

/// As manifests for networks of both families name them.
#[test]
fn ports_of_a_family_that_the_pod_lacks_are_passed_over() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let (pod, world) = (NetNs::new(), NetNs::new());
    wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
    let mapping = |ip: &str| json!({"hostPort": 12000, "containerPort": 80, "hostIP": ip});
    let both = json!([mapping("::"), mapping("0.0.0.0")]);
    let added = node.add("a", &pod, both.clone()).unwrap();
    serve(&pod, "0.0.0.0:80");
    assert_eq!(connect(&world, "192.0.2.1:12000"), Ok("192.0.2.2".to_owned()));
    node.check("a", &pod, both, &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    let alone = json!([mapping("::1")]);
    let added = node.add("a", &pod, alone.clone()).unwrap();
    node.check("a", &pod, alone, &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

//! What is collected: attachments of Berth's whose pods are gone, and nobody else's.

use super::*;

#[tokio::test]
async fn garbage_is_what_berth_made_for_pods_that_are_gone() {
    let node = Node::new("1.1.0");
    let (live, dead, foreign, torn) = (attachment(), attachment(), PodId::generate(), PodId::generate());
    for attachment in [&live, &dead] {
        node.add(attachment).await.unwrap();
    }
    let record = json!({"kind": "cniCacheV1", "containerId": foreign, "config": "e30=", "ifName": "eth0",
        "networkName": "net", "result": {}});
    node.put(&format!("cni/results/net-{foreign}-eth0"), &record.to_string());
    node.put(&format!("cni/results/net-{torn}-eth0"), "");
    node.put(&format!("cni/results/other-{}-eth0", PodId::generate()), "");
    node.calls();
    assert_eq!(node.cni.gc(&BTreeSet::from([live.pod.clone()])).await.unwrap(), 1);
    let log = node.take_log();
    let calls: Vec<_> = log.iter().map(|(call, _, _)| call.as_str()).collect();
    assert_eq!(calls, ["second-DEL", "first-DEL", "first-GC", "second-GC"]);
    let mut valid: Vec<_> =
        [&live.pod, &foreign, &torn].map(|pod| json!({"containerID": pod, "ifname": "eth0"})).into();
    valid.sort_by_key(Value::to_string);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        assert_eq!(log[2].2[key], Value::Array(valid.clone()));
    }
    assert_eq!(log[2].1, "|||");

    let states: Vec<_> =
        node.cni.attachments().unwrap().into_iter().map(|r| (r.network, r.pod, r.state)).collect();
    assert!(states.contains(&("net".into(), live.pod, Some(State::Attached))));
    assert!(states.contains(&("net".into(), torn.clone(), None)));
    assert_eq!(states.len(), 3);
    assert_eq!(node.cni.del(&torn).await.unwrap(), 1);
    node.put("cni/results/nameless", "");
    assert!(matches!(node.cni.gc(&BTreeSet::new()).await, Err(CniError::Record { action: "reading", .. })));
}

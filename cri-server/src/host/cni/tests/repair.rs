//! Whose attachments are given to whom for repair, and when.

use super::*;

#[tokio::test]
async fn only_berths_program_is_asked_to_repair_and_only_for_the_living() {
    let node = Node::new("1.1.0");
    let (live, dead) = (attachment(), attachment());
    for attachment in [&live, &dead] {
        node.add(attachment).await.unwrap();
    }
    node.calls();
    let pods = BTreeSet::from([live.pod.clone()]);
    // Plugins that are anybody's.
    assert_eq!(node.cni.repair(&pods).await.unwrap(), 0);
    assert_eq!(node.calls(), [""; 0]);
    // One of them is a link to the program.
    let bin = node.dir.path().join("bin");
    fs::rename(bin.join("second"), bin.join("cni-bridge")).unwrap();
    std::os::unix::fs::symlink("cni-bridge", bin.join("second")).unwrap();
    let ask = |script: &str| node.put("bin/cni-bridge", &format!("#!/bin/sh\n{script}\n"));
    let asked = node.dir.path().join("asked");
    ask(&format!("echo \"$CNI_COMMAND|$CNI_PATH|$*\" > {}", asked.display()));
    assert_eq!(node.cni.repair(&pods).await.unwrap(), 1);
    let record = node.dir.path().join("cni/results").join(format!("net-{}-eth0", live.pod));
    let path = format!("{}:{}", node.dir.path().join("none").display(), bin.display());
    assert_eq!(fs::read_to_string(&asked).unwrap(), format!("|{path}|repair {}\n", record.display()));
    ask("echo cni-bridge: no >&2; exit 1");
    let error = node.cni.repair(&pods).await.unwrap_err();
    let expect = "repairing the rules of attachments: CNI plugin cni-bridge failed at repair: it ended with exit \
        status: 1 and without a CNI error: \"cni-bridge: no\"";
    assert_eq!(chain_of(&error), expect);
    assert_eq!(node.cni.repair(&BTreeSet::from([PodId::generate()])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_repair_runs_alone() {
    let node = Node::new("1.1.0");
    let _running = node.cni.gate.read().await;
    assert!(matches!(node.cni.repair(&BTreeSet::new()).await, Err(CniError::RepairBusy)));
}

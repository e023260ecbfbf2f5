//! Killed at any instant, and many at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use proto::cni::Verb;
use proto::cni::runtime::Additions;
use serde_json::{Value, json};

use super::node::{NetNs, Node, attachment, privileged};

/// Whatever a killed ADD has done, one DEL undoes.
#[test]
fn a_killed_add_is_undone_by_del() {
    if !privileged() {
        return;
    }
    const ROUNDS: u32 = 50;
    let node = Node::new(|_| {});
    let keeper = NetNs::new();
    node.add("keeper", &keeper, json!([{"hostPort": 999, "containerPort": 1}])).unwrap();
    let before = node.leftovers();
    let capabilities = json!({"portMappings": [{"hostPort": 1000, "containerPort": 80}]});
    let target = attachment("a");
    for round in 0..ROUNDS {
        let pod = NetNs::new();
        let at = (&target, Some(pod.path.as_path()));
        let more = Additions { capability_args: capabilities.as_object(), ..Additions::default() };
        let mut child = node.start(0, Verb::Add, at, more);
        // Not a wait for something to become true: the instant of death is what is being varied.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 200));
        child.kill().unwrap();
        child.wait().unwrap();
        let netns = (round % 2 == 0).then_some(pod.path.as_path());
        node.del("a", netns).unwrap();
        assert_eq!(node.leftovers(), before, "round {round}");
        node.add("a", &pod, json!([{"hostPort": 1000, "containerPort": 80}])).unwrap();
        node.del("a", netns).unwrap();
        assert_eq!(node.leftovers(), before, "round {round}");
    }
}

/// A killed DEL is finished by the next.
#[test]
fn a_killed_del_is_finished_by_the_next() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| json["plugins"].as_array_mut().unwrap().truncate(1));
    let target = attachment("a");
    for round in 0..20u64 {
        let pod = NetNs::new();
        node.add("a", &pod, Value::Null).unwrap();
        let mut child = node.start(0, Verb::Del, (&target, Some(&pod.path)), Additions::default());
        std::thread::sleep(Duration::from_micros(round * 200));
        child.kill().unwrap();
        child.wait().unwrap();
        node.del("a", Some(&pod.path)).unwrap();
        assert_eq!(node.leftovers(), [""; 0], "round {round}");
    }
}

#[test]
fn twenty_at_once_get_distinct_addresses() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let pods: Vec<NetNs> = (0..20).map(|_| NetNs::new()).collect();
    let add = |index: usize| {
        let ports = json!([{"hostPort": 2000 + index, "containerPort": 80}]);
        node.add(&format!("c{index}"), &pods[index], ports).unwrap().ip4()
    };
    let addresses: BTreeSet<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..pods.len()).map(|index| scope.spawn(move || add(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), pods.len());
    std::thread::scope(|scope| {
        for (index, pod) in pods.iter().enumerate() {
            let (node, path): (&Node, &Path) = (&node, &pod.path);
            scope.spawn(move || node.del(&format!("c{index}"), Some(path)).unwrap());
        }
    });
    assert_eq!(node.leftovers(), [""; 0]);
}

/// Each of the last pods that go at once sees the others' rules; the tables go all the same.
#[test]
fn the_last_ones_at_once_leave_nothing() {
    if !privileged() {
        return;
    }
    let node = Node::new(|_| {});
    let pods: Vec<NetNs> = (0..6).map(|_| NetNs::new()).collect();
    for round in 0..30 {
        for (index, pod) in pods.iter().enumerate() {
            let ports = json!([{"hostPort": 2000 + index, "containerPort": 80}]);
            node.add(&format!("c{index}"), pod, ports).unwrap();
        }
        std::thread::scope(|scope| {
            for (index, pod) in pods.iter().enumerate() {
                let (node, path): (&Node, &Path) = (&node, &pod.path);
                scope.spawn(move || node.del(&format!("c{index}"), Some(path)).unwrap());
            }
        });
        assert_eq!(node.leftovers(), [""; 0], "round {round}");
    }
}

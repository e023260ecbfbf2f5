//! portmap: several calls at once want the same.

use std::collections::BTreeSet;
use std::process::Child;

use proto::cni::runtime::{Additions, Output};
use proto::cni::{CniError, CniResult, ErrorCode, Verb};
use serde_json::{Value, json};

use super::node::{Added, NetNs, Node, attachment, privileged};

/// A node with some pods that have addresses and no ports yet.
struct Pods {
    node: Node,
    pods: Vec<(String, NetNs, Added)>,
}

impl Pods {
    fn new(count: usize) -> Self {
        let node = Node::new(|_| {});
        let pod = |number: usize| {
            let (name, pod) = (format!("c{number}"), NetNs::new());
            let target = (&attachment(&name), Some(pod.path.as_path()));
            let added = node.call(0, Verb::Add, target, Additions::default()).unwrap().unwrap();
            (name, pod, added)
        };
        let pods = (0..count).map(pod).collect();
        Self { node, pods }
    }

    /// ADD of portmap for all at once, each with its ports; the first of `order` starts first.
    fn publish(&self, ports: &[Value], order: &[usize]) -> Vec<Result<CniResult, CniError>> {
        let mut children: Vec<Option<Child>> = self.pods.iter().map(|_| None).collect();
        for index in order {
            let (name, pod, added) = &self.pods[*index];
            let capabilities = json!({"portMappings": ports[*index]});
            let more = Additions {
                capability_args: capabilities.as_object(),
                prev_result: Some(&added.json),
                valid_attachments: None,
            };
            children[*index] =
                Some(self.node.start(1, Verb::Add, (&attachment(name), Some(&pod.path)), more));
        }
        let outputs = children.into_iter().map(|child| child.unwrap().wait_with_output().unwrap());
        let results = outputs.map(|output| {
            let (status, stdout, stderr) = (output.status.code(), &output.stdout[..], &output.stderr[..]);
            let output = Output { plugin: "portmap", status, stdout, stderr };
            output.result(self.node.list.version).map(|(_, result)| result)
        });
        results.collect()
    }

    fn withdraw(&self) {
        for (name, pod, _) in &self.pods {
            let target = (&attachment(name), Some(pod.path.as_path()));
            self.node.call(1, Verb::Del, target, Additions::default()).unwrap();
        }
    }
}

/// A port of all addresses and the same port of one are in different maps.
#[test]
fn of_two_at_once_one_gets_the_port() {
    if !privileged() {
        return;
    }
    let pods = Pods::new(2);
    let port = |host: &str| {
        let many = 100;
        json!([{"hostPort": 1000, "containerPort": 1000, "hostIP": host, "range": many}])
    };
    let ports = [port(""), port("192.0.2.1")];
    for round in 0..25 {
        let order = [round % 2, 1 - round % 2];
        let outcomes = pods.publish(&ports, &order);
        let winners: Vec<usize> = (0..2).filter(|index| outcomes[*index].is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}: {outcomes:?}");
        let loser = outcomes[1 - winners[0]].as_ref().unwrap_err();
        assert_eq!(loser.code, ErrorCode::PLUGIN);
        let holder = format!("is already published for berth/c{}/eth0", winners[0]);
        assert!(loser.msg.ends_with(&holder), "round {round}: {loser}");
        let loser = format!("berth/c{}/eth0", 1 - winners[0]);
        let left = pods.node.leftovers();
        let of_loser: Vec<_> =
            left.iter().filter(|what| what.starts_with("berth_portmap") && what.contains(&loser)).collect();
        assert!(of_loser.is_empty(), "round {round}: {of_loser:?}");
        pods.withdraw();
    }
}

#[test]
fn all_at_once_find_free_ports() {
    if !privileged() {
        return;
    }
    let pods = Pods::new(4);
    let asked: Vec<Value> = (1..=400).map(|number| json!({"hostPort": 0, "containerPort": number})).collect();
    let ports: Vec<Value> = pods.pods.iter().map(|_| asked.clone().into()).collect();
    for round in 0..4 {
        let mut found = BTreeSet::new();
        for outcome in pods.publish(&ports, &[0, 1, 2, 3]) {
            found.extend(outcome.unwrap().port_mappings.iter().map(|port| port.host_port));
        }
        assert_eq!(found.len(), 1600, "round {round}");
        pods.withdraw();
    }
}

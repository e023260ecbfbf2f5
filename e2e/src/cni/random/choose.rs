//! What an operation is done to, and with.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::act::Act;
use super::model::{Half, Member, Port};
use crate::cni::runner::Pod;

/// Host ports are chosen out of so few that they meet.
const PORTS: usize = 40;
/// The first of them.
pub const FIRST_PORT: u16 = 30000;
/// The subnet of addresses that the runtime names: 10.126.0.0/15.
const NAMED: u32 = 0x0a7e_0000;
/// Longest life of a plugin that is killed, microseconds: longer than any takes.
const LONGEST_LIFE: usize = 9000;

impl Act<'_> {
    /// One of the attachments that the runtime knows.
    pub fn some_live(&mut self) -> Option<usize> {
        (!self.model.live.is_empty()).then(|| self.dice.below(self.model.live.len()))
    }

    /// How long a plugin lives that is killed.
    pub fn some_life(&mut self) -> Duration {
        Duration::from_micros(self.dice.below(LONGEST_LIFE) as u64)
    }

    /// A new pod, or one that is there already.
    pub fn some_pod(&mut self) -> Result<Pod> {
        if self.model.pods.is_empty() || self.dice.chance(70) {
            return self.new_pod();
        }
        Ok(self.dice.pick(&self.model.pods).clone())
    }

    /// A pod with a namespace.
    pub fn new_pod(&mut self) -> Result<Pod> {
        let pod = self.host.pod(&self.model.new_id())?;
        self.model.pods.push(pod.clone());
        Ok(pod)
    }

    /// The pod's namespace goes.
    pub fn end_pod(&mut self, pod: &Pod) -> Result<()> {
        self.model.pods.retain(|other| other != pod);
        self.host.end_pod(pod)
    }

    /// None, or a few host ports.
    pub fn some_ports(&mut self) -> Vec<Port> {
        let mut ports: Vec<Port> = Vec::new();
        for _ in 0..self.dice.below(4) {
            let protocol = *self.dice.pick(&["tcp", "udp"]);
            let port = (protocol, FIRST_PORT + self.dice.below(PORTS) as u16);
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        ports
    }

    /// Whether the network publishes ports.
    pub fn has_ports(&self, network: usize) -> bool {
        self.networks[network].list.plugins.iter().any(|plugin| plugin.plugin == "portmap")
    }

    /// Whether host-local keeps the network's addresses.
    pub fn has_reservations(&self, network: usize) -> bool {
        let ipam = self.networks[network].list.plugins[0].map().get("ipam");
        ipam.is_some_and(|ipam| ipam["type"] == "host-local")
    }

    /// Whether the pod is or was on the network, as far as anybody knows: no runtime adds it again before DEL.
    pub fn is_known(&self, network: usize, pod: &Pod) -> bool {
        let certain = |member: &Member| member.network == network && member.attached.pod == *pod;
        let half = |half: &Half| half.network == network && half.attachment.container_id.as_str() == pod.id;
        self.model.certain().any(certain) || self.model.halves.iter().any(half)
    }

    /// Whether the pod is on any network, as far as anybody knows.
    pub fn is_used(&self, pod: &Pod) -> bool {
        let halves = || self.model.halves.iter().any(|half| half.attachment.container_id.as_str() == pod.id);
        self.model.certain().any(|member| member.attached.pod == *pod) || halves()
    }
}

/// What a runtime hands on: `portMappings`, and an address in `ips` that is this pod's.
pub fn capabilities(pod: &Pod, ports: &[Port]) -> Result<Value> {
    let number: u16 = pod.id.trim_start_matches("pod").parse().context("a pod's number")?;
    // The first addresses are a gateway's.
    let address = Ipv4Addr::from(NAMED + u32::from(number) + 16);
    let mapping =
        |(protocol, port): &Port| json!({"hostPort": port, "containerPort": 80, "protocol": protocol});
    let mappings: Vec<Value> = ports.iter().map(mapping).collect();
    Ok(json!({"portMappings": mappings, "ips": [format!("{address}/15")]}))
}

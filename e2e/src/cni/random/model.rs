//! What must be there, as far as anybody can know: attachments that a runtime keeps, that it forgot, and that were
//! interrupted half way.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use proto::cni::Attachment;
use proto::cni::result::IpConfig;

use crate::cni::runner::{Attached, Pod};

/// A transport and a port of the host.
pub type Port = (&'static str, u16);

/// An attachment that was made.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which network.
    pub network: usize,
    /// What ADD gave.
    pub attached: Attached,
    /// Host ports that lead to it.
    pub ports: Vec<Port>,
}

/// An attachment that is half there, or not at all: until DEL or GC nobody can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// Which network.
    pub network: usize,
    /// The attachment.
    pub attachment: Attachment,
}

/// The state.
#[derive(Debug, Default)]
pub struct Model {
    /// Made, and known to the runtime.
    pub live: Vec<Member>,
    /// Made, and forgotten by the runtime: GC has to find it.
    pub lost: Vec<Member>,
    /// Interrupted.
    pub halves: Vec<Half>,
    /// Pods whose namespace is there.
    pub pods: Vec<Pod>,
    /// The addresses that each network gave first, reboots or not: they tell its subnets.
    first: BTreeMap<usize, Vec<IpConfig>>,
    made: usize,
}

impl Model {
    /// An id that no pod had before.
    pub fn new_id(&mut self) -> String {
        self.made += 1;
        format!("pod{}", self.made)
    }

    /// Attachments of a network that GC is to leave alone.
    #[must_use]
    pub fn valid(&self, network: usize) -> Vec<Attachment> {
        self.live.iter().filter(|m| m.network == network).map(|m| m.attached.attachment.clone()).collect()
    }

    /// Whether the pod's namespace is there.
    #[must_use]
    pub fn has_namespace(&self, pod: &Pod) -> bool {
        self.pods.contains(pod)
    }

    /// Attachments that are there for certain.
    pub fn certain(&self) -> impl Iterator<Item = &Member> {
        self.live.iter().chain(&self.lost)
    }

    /// Remembers the subnets of the last that came: its network has no others ever, and no other network meets them.
    pub fn keep_subnets(&mut self) -> Result<()> {
        let Some(Member { network, attached, .. }) = self.live.last() else { return Ok(()) };
        let own = &attached.result.ips;
        let known = self.first.entry(*network).or_insert_with(|| own.clone());
        let subnets = |ips: &[IpConfig]| ips.iter().map(|ip| ip.address.trunc().to_string()).collect();
        let (found, before): (Vec<String>, Vec<String>) = (subnets(own), subnets(known));
        ensure!(found == before, "{attached:?} is in {found:?}, others of its network are in {before:?}");
        let meet = |one: &IpConfig, other: &IpConfig| {
            one.address.contains(&other.address.addr()) || other.address.contains(&one.address.addr())
        };
        let meets = |other: &IpConfig| own.iter().any(|ip| meet(ip, other));
        let met = self.first.iter().find(|(other, theirs)| *other != network && theirs.iter().any(meets));
        ensure!(met.is_none(), "{attached:?} meets network {met:?}");
        Ok(())
    }

    /// Ports that somebody holds for certain.
    #[must_use]
    pub fn held(&self) -> BTreeSet<Port> {
        self.certain().flat_map(|member| member.ports.iter().copied()).collect()
    }

    /// Whether a network of the pod has the port, or may have it: that one serves it, and another need not.
    #[must_use]
    pub fn may_hold(&self, pod: &Pod, port: &Port) -> bool {
        let mut certain = self.certain().filter(|member| member.attached.pod == *pod);
        let mut halves = self.halves.iter().map(|half| &half.attachment.container_id);
        certain.any(|member| member.ports.contains(port)) || halves.any(|id| id.as_str() == pod.id)
    }

    /// GC of a network took what the runtime did not know.
    pub fn collected(&mut self, network: usize) {
        self.lost.retain(|member| member.network != network);
        self.halves.retain(|half| half.network != network);
    }

    /// DEL took an attachment.
    pub fn deleted(&mut self, network: usize, attachment: &Attachment) {
        let is = |member: &Member| member.network == network && member.attached.attachment == *attachment;
        self.live.retain(|member| !is(member));
        self.halves.retain(|half| half.network != network || half.attachment != *attachment);
    }

    /// An attachment was interrupted.
    pub fn interrupted(&mut self, network: usize, attachment: &Attachment) {
        self.deleted(network, attachment);
        self.halves.push(Half { network, attachment: attachment.clone() });
    }

    /// The host was started anew: namespaces are gone, and what has lasted nobody can say.
    pub fn rebooted(&mut self) {
        let members = self.live.drain(..).chain(self.lost.drain(..));
        let halves =
            members.map(|member| Half { network: member.network, attachment: member.attached.attachment });
        self.halves.extend(halves);
        self.pods.clear();
    }
}

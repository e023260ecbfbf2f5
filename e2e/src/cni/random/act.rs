//! The operations.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use proto::cni::{CniError, Verb};
use serde_json::Value;

use super::Tally;
use super::choose::{FIRST_PORT, capabilities};
use super::model::{Member, Model, Port};
use crate::cni::host::Host;
use crate::cni::plugins::Plugins;
use crate::cni::runner::{Attached, Network, Pod, Target, attachment};
use crate::dice::Dice;

/// Attachments at one time, about.
const CROWD: usize = 40;
/// Attachments that are made and removed at the same time.
const BURST: usize = 6;

/// The run: where it acts, what it knows, and its dice.
pub struct Act<'a> {
    /// The host.
    pub host: &'a Host,
    /// Ours.
    pub plugins: Plugins,
    /// The networks.
    pub networks: Vec<Network>,
    /// What must be there.
    pub model: Model,
    /// Choices.
    pub dice: Dice,
    /// What was done.
    pub tally: Tally,
    /// How often the host was started anew.
    pub reboots: u32,
}

impl Act<'_> {
    /// One pod comes and goes on each network, so that what the first makes for all is there.
    pub fn warm_up(&mut self) -> Result<()> {
        for network in 0..self.networks.len() {
            let pod = self.new_pod()?;
            let given = capabilities(&pod, &[("tcp", 29999)])?;
            let attached = self.networks[network].add(&self.plugins, &pod, "eth0", &given)??;
            self.networks[network].del(&self.plugins, attached.target())??;
            self.end_pod(&pod)?;
        }
        Ok(())
    }

    /// One operation.
    pub fn step(&mut self) -> Result<()> {
        let crowded = self.model.live.len() >= CROWD;
        match self.dice.below(1000) {
            0..300 if !crowded => self.add(),
            0..550 => self.del(),
            550..650 => self.killed_add(),
            650..720 => self.killed_del(),
            720..850 => self.check(),
            850..880 => self.forget(),
            880..930 => self.collect(),
            930..960 => self.finish_half(),
            960..975 => self.status(),
            975..996 => self.burst(),
            _ => self.reboot(),
        }
    }

    /// DEL of everything that is known, GC of everything that is not.
    pub fn end_all(&mut self) -> Result<()> {
        while !self.model.live.is_empty() {
            self.del()?;
        }
        for network in 0..self.networks.len() {
            self.networks[network].gc(&self.plugins, &[])??;
            self.model.collected(network);
        }
        for pod in std::mem::take(&mut self.model.pods) {
            self.host.end_pod(&pod)?;
        }
        self.audit()
    }

    fn add(&mut self) -> Result<()> {
        let (network, pod) = (self.dice.below(self.networks.len()), self.some_pod()?);
        let ifname = format!("eth{network}");
        if self.is_known(network, &pod) {
            return Ok(());
        }
        let mut ports = self.some_ports();
        ports.retain(|port| !self.model.may_hold(&pod, port));
        let given = capabilities(&pod, &ports)?;
        match self.networks[network].add(&self.plugins, &pod, &ifname, &given)? {
            Ok(attached) => {
                self.tally.count("ADD");
                let ports = if self.has_ports(network) { ports } else { Vec::new() };
                self.added(Member { network, attached, ports })
            }
            Err(error) => {
                self.tally.count("refused ADD");
                self.expect_refusal(network, &ports, &error)?;
                let target = attachment(&pod.id, &ifname)?;
                let netns = Some(pod.netns.as_path());
                let target = Target { attachment: &target, netns, capabilities: None, result: None };
                self.networks[network].del(&self.plugins, target)?.context("DEL after a failed ADD")?;
                Ok(())
            }
        }
    }

    /// What ADD gave is nobody else's.
    fn added(&mut self, member: Member) -> Result<()> {
        let held = self.model.held();
        if let Some(port) = member.ports.iter().find(|port| held.contains(*port)) {
            bail!("{port:?} was given away twice");
        }
        for other in self.model.certain().filter(|other| other.network == member.network) {
            let taken = |ip: &proto::cni::result::IpConfig| {
                member.attached.result.ips.iter().any(|own| own.address.addr() == ip.address.addr())
            };
            ensure!(
                !other.attached.result.ips.iter().any(taken),
                "an address of {other:?} was given away twice"
            );
        }
        self.model.live.push(member);
        self.model.keep_subnets()
    }

    fn expect_refusal(&self, network: usize, ports: &[Port], error: &CniError) -> Result<()> {
        let text = error.to_string();
        // Whoever was interrupted may hold a port or an address.
        let held = self.model.held();
        let taken = !self.model.halves.is_empty() || ports.iter().any(|port| held.contains(port));
        let expected = (text.contains("already published") && self.has_ports(network) && taken)
            || text.contains("no IP addresses available");
        ensure!(expected, "ADD to {}: {text}", self.networks[network].name());
        Ok(())
    }

    fn del(&mut self) -> Result<()> {
        let Some(at) = self.some_live() else { return Ok(()) };
        let member = self.model.live[at].clone();
        let network = member.network;
        if self.dice.chance(40) {
            self.end_pod(&member.attached.pod)?;
        }
        for _ in 0..1 + usize::from(self.dice.chance(30)) {
            let target = self.poor_target(&member.attached);
            self.networks[network].del(&self.plugins, target)?.context("DEL")?;
            self.tally.count("DEL");
        }
        self.model.deleted(network, &member.attached.attachment);
        if self.dice.chance(60) && !self.is_used(&member.attached.pod) {
            self.end_pod(&member.attached.pod)?;
        }
        Ok(())
    }

    /// With everything, or without one or all of what a runtime can lose.
    fn poor_target<'m>(&mut self, attached: &'m Attached) -> Target<'m> {
        let mut target = attached.target();
        if self.dice.chance(40) {
            target.netns = None;
        }
        if self.dice.chance(30) {
            target.result = None;
        }
        if self.dice.chance(30) {
            target.capabilities = None;
        }
        target
    }

    fn killed_add(&mut self) -> Result<()> {
        let (network, pod) = (self.dice.below(self.networks.len()), self.some_pod()?);
        if self.is_known(network, &pod) {
            return Ok(());
        }
        let target = attachment(&pod.id, &format!("eth{network}"))?;
        let (given, life) = (capabilities(&pod, &self.some_ports())?, self.some_life());
        let (netns, capabilities) = (Some(pod.netns.as_path()), given.as_object());
        let list = &self.networks[network];
        let last = self.dice.below(list.list.plugins.len());
        let mut result: Option<Value> = None;
        for index in 0..=last {
            let target = Target { attachment: &target, netns, capabilities, result: result.as_ref() };
            let call = list.start(&self.plugins, index, Verb::Add, target)?;
            if index == last {
                // Not a wait for something: the instant of death is what is varied.
                std::thread::sleep(life);
                call.kill();
                break;
            }
            match call.end()?.output(list, index).result(list.list.version) {
                Ok((json, _)) => result = Some(json),
                Err(_) => break,
            }
        }
        self.tally.count("killed ADD");
        self.model.interrupted(network, &target);
        if self.dice.chance(60) { self.finish_last_half() } else { Ok(()) }
    }

    fn killed_del(&mut self) -> Result<()> {
        let Some(at) = self.some_live() else { return Ok(()) };
        let member = self.model.live[at].clone();
        let network = member.network;
        let first = self.networks[network].list.plugins.len() - 1;
        let last = self.dice.below(first + 1);
        for index in (last..=first).rev() {
            let (target, life) = (self.poor_target(&member.attached), self.some_life());
            let call = self.networks[network].start(&self.plugins, index, Verb::Del, target)?;
            if index == last {
                std::thread::sleep(life);
                call.kill();
            } else {
                call.end()?.output(&self.networks[network], index).success().context("DEL")?;
            }
        }
        self.tally.count("killed DEL");
        self.model.interrupted(network, &member.attached.attachment);
        if self.dice.chance(60) { self.finish_last_half() } else { Ok(()) }
    }

    fn finish_half(&mut self) -> Result<()> {
        let halves = self.model.halves.len();
        if halves > 0 {
            let at = self.dice.below(halves);
            self.model.halves.swap(at, halves - 1);
        }
        self.finish_last_half()
    }

    /// DEL of what was interrupted last.
    fn finish_last_half(&mut self) -> Result<()> {
        let Some(half) = self.model.halves.last().cloned() else { return Ok(()) };
        let pod = self.model.pods.iter().find(|pod| pod.id == half.attachment.container_id.as_str());
        let netns: Option<PathBuf> = pod.map(|pod| pod.netns.clone());
        let netns = netns.as_deref().filter(|_| self.dice.chance(60));
        let target = Target { attachment: &half.attachment, netns, capabilities: None, result: None };
        self.networks[half.network].del(&self.plugins, target)?.context("DEL of what was interrupted")?;
        self.tally.count("DEL of an interrupted one");
        self.model.deleted(half.network, &half.attachment);
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        let live = self.model.live.iter().filter(|member| self.model.has_namespace(&member.attached.pod));
        let live: Vec<&Member> = live.collect();
        if live.is_empty() {
            return Ok(());
        }
        let member = *self.dice.pick(&live);
        let target = member.attached.target();
        let checked = self.networks[member.network].check(&self.plugins, target)?;
        checked.with_context(|| format!("CHECK of {:?}", member.attached.attachment))?;
        self.tally.count("CHECK");
        Ok(())
    }

    /// The runtime loses its record of an attachment, and often the pod ends too.
    fn forget(&mut self) -> Result<()> {
        let Some(at) = self.some_live() else { return Ok(()) };
        let member = self.model.live.swap_remove(at);
        if self.dice.chance(70) {
            self.end_pod(&member.attached.pod)?;
        }
        self.model.lost.push(member);
        self.tally.count("forgotten");
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        let network = self.dice.below(self.networks.len());
        let valid = self.model.valid(network);
        self.networks[network].gc(&self.plugins, &valid)?.context("GC")?;
        self.model.collected(network);
        self.tally.count("GC");
        Ok(())
    }

    fn status(&mut self) -> Result<()> {
        let network = self.dice.below(self.networks.len());
        if let Err(error) = self.networks[network].status(&self.plugins)? {
            ensure!(error.to_string().contains("no IP addresses available"), "STATUS: {error}");
        }
        self.tally.count("STATUS");
        Ok(())
    }

    /// Several pods come at once and go at once.
    fn burst(&mut self) -> Result<()> {
        let pods = (0..BURST).map(|_| self.new_pod()).collect::<Result<Vec<Pod>>>()?;
        let order: Vec<usize> = pods.iter().map(|_| self.dice.below(self.networks.len())).collect();
        let (networks, plugins) = (&self.networks, &self.plugins);
        let life = |(index, pod): (usize, &Pod)| -> Result<()> {
            let network = &networks[order[index]];
            let given = capabilities(pod, &[("tcp", FIRST_PORT + 1000 + index as u16)])?;
            match network.add(plugins, pod, "eth0", &given)? {
                Ok(attached) => {
                    network.check(plugins, attached.target())?.context("CHECK in a burst")?;
                    Ok(network.del(plugins, attached.target())?.context("DEL in a burst")?)
                }
                Err(error) if error.to_string().contains("no IP addresses available") => {
                    let target = attachment(&pod.id, "eth0")?;
                    let target =
                        Target { attachment: &target, netns: None, capabilities: None, result: None };
                    Ok(network.del(plugins, target)??)
                }
                Err(error) => Err(error).context("ADD in a burst"),
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = pods.iter().enumerate().map(|pod| scope.spawn(move || life(pod))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread of a burst panicked")))
                .collect::<Result<Vec<()>>>()
        })?;
        self.tally.count("burst");
        pods.iter().try_for_each(|pod| self.end_pod(pod))
    }

    fn reboot(&mut self) -> Result<()> {
        self.reboots += 1;
        self.host.reboot(self.reboots)?;
        self.model.rebooted();
        self.tally.count("reboot");
        Ok(())
    }
}

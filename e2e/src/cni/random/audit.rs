//! A look at everything: what is there belongs to somebody who may have it, and who must have something has it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::cni::Attachment;
use serde_json::Value;

use super::act::Act;
use crate::exec::Program;
use crate::wait;

/// How long the end of a link may take.
const SETTLE: Duration = Duration::from_secs(15);

impl Act<'_> {
    /// Compares links, rules and reserved addresses with the model.
    pub fn audit(&self) -> Result<()> {
        wait::until("a host that is as the model says", SETTLE, || {
            self.owners()?;
            let mut kept = (0..self.networks.len()).filter(|network| self.has_reservations(*network));
            kept.try_for_each(|network| self.reservations(network))
        })
    }

    /// Links and elements of nf_tables by the tags of their owners.
    fn owners(&self) -> Result<()> {
        let show = Program::new("ip").args(["-j", "-d", "link", "show"]).ok()?;
        let links_shown: Value = serde_json::from_str(&show)?;
        let rules: Value = serde_json::from_str(&Program::new("nft").args(["-j", "list", "ruleset"]).ok()?)?;
        let (links, rules) = (tags(&links_shown, "ifalias"), tags(&rules, "comment"));
        let tag = |network: usize, attachment: &Attachment| {
            format!("{}/{}/{}", self.networks[network].name(), attachment.container_id, attachment.ifname)
        };
        let certain = self.model.certain().map(|m| tag(m.network, &m.attached.attachment));
        let halves = self.model.halves.iter().map(|half| tag(half.network, &half.attachment));
        let allowed: BTreeSet<String> = certain.chain(halves).collect();
        if let Some(stray) = links.iter().chain(&rules).find(|tag| !allowed.contains(*tag)) {
            anyhow::bail!("{stray} has something and should not");
        }
        let drafts = untagged(&links_shown);
        ensure!(drafts.len() <= self.model.halves.len(), "links of nobody: {drafts:?}");
        for member in self.model.certain() {
            let tag = tag(member.network, &member.attached.attachment);
            let has_link = links.contains(&tag) || !self.model.has_namespace(&member.attached.pod);
            ensure!(has_link || !self.is_bridged(member.network), "{tag} has no link");
            ensure!(member.ports.is_empty() || rules.contains(&tag), "{tag} has no rule");
        }
        Ok(())
    }

    fn is_bridged(&self, network: usize) -> bool {
        ["bridge", "ptp"].contains(&self.networks[network].list.plugins[0].plugin.as_str())
    }

    /// host-local's files of a network.
    fn reservations(&self, network: usize) -> Result<()> {
        let name = self.networks[network].name();
        let dir = Path::new("/var/lib/cni/networks").join(name);
        let own = self.model.certain().filter(|member| member.network == network);
        let must: BTreeSet<String> = own
            .flat_map(|member| member.attached.result.ips.iter().map(|ip| ip.address.addr().to_string()))
            .collect();
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(&dir).into_iter().flatten() {
            let entry = entry?;
            let address = entry.file_name().to_string_lossy().into_owned();
            if address.parse::<std::net::IpAddr>().is_err() {
                continue;
            }
            let holder = std::fs::read_to_string(entry.path()).context("read a reservation")?;
            let half = |half: &super::model::Half| {
                half.network == network
                    && holder.lines().next() == Some(half.attachment.container_id.as_str())
            };
            if !self.model.halves.iter().any(half) {
                found.insert(address);
            }
        }
        let stray: Vec<_> = found.difference(&must).collect();
        let missing: Vec<_> = must.difference(&found).collect();
        ensure!(stray.is_empty(), "network {name}: {stray:?} are reserved for nobody");
        ensure!(missing.is_empty(), "network {name}: {missing:?} are not reserved");
        Ok(())
    }
}

/// Names of virtual pairs' ends without an owner.
fn untagged(links: &Value) -> Vec<String> {
    let all = links.as_array().into_iter().flatten();
    let pairs = all.filter(|link| link["linkinfo"]["info_kind"] == "veth" && link["ifalias"].is_null());
    let names = pairs.map(|link| link["ifname"].as_str().unwrap_or_default().to_owned());
    names.filter(|name| !name.starts_with("wire")).collect()
}

/// Values of `key`, anywhere in `value`, that are tags of an owner.
fn tags(value: &Value, key: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    match value {
        Value::Object(map) => {
            if let Some(tag) = map.get(key).and_then(Value::as_str).filter(|tag| tag.split('/').count() == 3)
            {
                found.insert(tag.to_owned());
            }
            map.values().for_each(|inner| found.extend(tags(inner, key)));
        }
        Value::Array(list) => list.iter().for_each(|inner| found.extend(tags(inner, key))),
        _ => {}
    }
    found
}

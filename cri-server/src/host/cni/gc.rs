//! Garbage collection: DEL of records whose pods are gone, then GC of the configured network.
//! Attachments that other runtimes recorded in the same directory are valid for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use super::cache::{Entry, parts};
use super::chain::Runner;
use super::conf::SpecVersion;
use super::error::{CniError, Failures};
use super::{Cni, undo};
use crate::model::id::PodId;

/// Nothing else runs meanwhile.
const DEADLINE: Duration = Duration::from_secs(10);

impl Cni {
    /// Releases everything that Berth attached for pods that are not in `live`. Returns how many records went.
    ///
    /// Runs alone: while an operation runs it answers [`CniError::GcBusy`]. GC of plugins is left out when the
    /// network says `disableGC` or its version is below 1.1.0, and refused while a record is unreadable.
    pub async fn gc(&self, live: &BTreeSet<PodId>) -> Result<usize, CniError> {
        let _alone = self.gate.try_write().map_err(|_| CniError::GcBusy)?;
        let mut collected = 0;
        let mut failures = Vec::new();
        for entry in self.cache.entries(None)? {
            let stale = undo::recorded(&entry).is_some_and(|r| r.state.is_some() && !live.contains(&r.pod));
            if stale {
                let left = self.detach(entry).await?;
                collected += usize::from(left.is_empty());
                failures.extend(left);
            }
        }
        let Ok(network) = self.network() else { return Ok(collected) };
        if network.version >= SpecVersion::V1_1_0 && !network.disable_gc {
            let valid = valid(self.cache.entries(None)?, &network.name)?;
            let runner = Runner { deadline: self.runner.deadline.min(DEADLINE), ..self.runner.clone() };
            failures.extend(runner.gc(&network, &valid).await);
        }
        if failures.is_empty() {
            return Ok(collected);
        }
        Err(CniError::Gc { network: network.name, failures: Failures(failures) })
    }
}

/// Container ids and interfaces of all records of a network, whoever wrote them.
fn valid(entries: Vec<Entry>, network: &str) -> Result<Vec<(String, String)>, CniError> {
    let mut valid = Vec::new();
    for entry in entries {
        match entry.record {
            Ok(record) if record.network_name == network => valid.push((record.container_id, record.if_name)),
            Ok(_) => {}
            Err(source) => match parts(&entry.path) {
                Some((name, id, ifname)) if name == network => valid.push((id.into(), ifname.into())),
                Some(_) => {}
                None => return Err(CniError::Record { action: "reading", path: entry.path, source }),
            },
        }
    }
    Ok(valid)
}

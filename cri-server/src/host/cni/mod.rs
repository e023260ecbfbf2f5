//! Pod networks by CNI plugins, called as libcni calls them (CNI specification 1.1).
//!
//! [`Cni`] owns the configuration directory, the plugin directories and the records of attachments. An attachment's
//! record exists from before its first plugin runs until its DEL succeeded, so that [`Cni::attachments`] names after
//! a crash everything that may have to be undone. Knows neither the CRI nor which pods are alive.
//!
//! The caller runs no two operations of one pod at once; operations of different pods run in parallel.

mod attachment;
mod cache;
mod chain;
mod conf;
mod error;
#[expect(clippy::disallowed_methods, reason = "plugins are programs")]
mod exec;
mod gc;
mod orphans;
#[cfg(test)]
mod peer_tests;
mod repair;
mod result;
mod status;
#[cfg(test)]
mod tests;
mod undo;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, RwLock};
use tokio_util::sync::CancellationToken;

pub use attachment::{Attachment, PortMapping, Protocol, Resolver};
pub use cache::State;
use cache::{Cache, Origin, Record};
use chain::{Runner, Stopped};
pub use conf::{Network, NoNetwork, Plugin, Problem, Rejected, SpecVersion};
pub use error::{Cause, CniError, Failures, PluginFailure, Verb};
pub use result::{Attached, Dns};
pub use status::NotReady;

use crate::model::id::PodId;

/// Where things are.
#[derive(Debug, Clone)]
pub struct Config {
    /// Network configurations; `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// Plugins, searched in order; `/opt/cni/bin`. Absolute.
    pub bin_dirs: Vec<PathBuf>,
    /// libcni's cache directory, the parent of `results`; `/var/lib/cni`.
    pub cache_dir: PathBuf,
    /// How long one run of one plugin may take.
    pub deadline: Duration,
}

/// Calls plugins and remembers what they did.
#[derive(Debug)]
pub struct Cni {
    conf_dir: PathBuf,
    runner: Runner,
    cache: Cache,
    boot_id: String,
    /// Held for reading by everything but GC.
    gate: RwLock<()>,
    status: Mutex<status::Seen>,
    /// Told when pods are cut off.
    limited: Notify,
}

/// An attachment that Berth made, or began to make, and did not undo yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The sandbox.
    pub pod: PodId,
    /// Name of the network.
    pub network: String,
    /// Interface in the sandbox.
    pub ifname: String,
    /// How far it got; `None` when the record is unreadable. Such a record may be another runtime's: undo it only
    /// when the pod is known to be one of ours.
    pub state: Option<State>,
}

impl Cni {
    /// Opens the directories; none has to exist yet.
    pub fn new(config: Config) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            conf_dir: config.conf_dir,
            runner: Runner { bin_dirs: config.bin_dirs, deadline: config.deadline },
            cache: Cache::new(&config.cache_dir),
            boot_id: boot_id.trim().to_string(),
            gate: RwLock::new(()),
            status: Mutex::default(),
            limited: Notify::new(),
        }
    }

    /// Attaches a pod to the configured network (ADD of all plugins).
    ///
    /// When a plugin fails, or at an abort, DEL of all plugins follows before this returns; what DEL could not undo
    /// stays recorded, to be repeated by [`Cni::del`]. When the future is dropped the running plugin is killed
    /// and the record stays.
    pub async fn add(
        &self,
        attachment: &Attachment,
        abort: &CancellationToken,
    ) -> Result<Attached, CniError> {
        attachment.check()?;
        let network = self.network().map_err(CniError::NoNetwork)?;
        let _running = self.gate.read().await;
        let mut record = self.intent(attachment, &network)?;
        let failed = |first, more: Vec<PluginFailure>| CniError::Add {
            pod: attachment.pod.clone(),
            network: network.name.clone(),
            failures: Failures(std::iter::once(first).chain(more).collect()),
        };
        self.runner.look_up(&network, Verb::Add).map_err(|missing| failed(missing, Vec::new()))?;
        self.cache.write(&record)?;
        let outcome = self.runner.add(&network, &record.target(), abort).await;
        match outcome.and_then(|result| read_result(result, attachment, &network)) {
            Ok(attached) => {
                record.finish(attached.result.clone());
                if let Err(error) = self.cache.write(&record) {
                    self.undo(&network, &record, network.plugins.len()).await?;
                    return Err(error);
                }
                Ok(attached)
            }
            Err(Stopped { failure, ran }) => {
                let left = self.undo(&network, &record, ran).await;
                Err(failed(failure, left?))
            }
        }
    }

    /// Detaches a pod from all its networks (DEL of all plugins, with the configuration and result of the ADD).
    ///
    /// Works without the network namespace and without a configuration. Returns how many attachments were undone: 0
    /// when the pod has none (any more). After a failure the record stays and the call can be repeated.
    pub async fn del(&self, pod: &PodId) -> Result<usize, CniError> {
        let _running = self.gate.read().await;
        let mut undone = 0;
        let mut failures = Vec::new();
        for entry in self.cache.entries(Some(pod.as_str()))? {
            let left = self.detach(entry).await?;
            undone += usize::from(left.is_empty());
            failures.extend(left);
        }
        if failures.is_empty() {
            return Ok(undone);
        }
        Err(CniError::Del { pod: pod.clone(), failures: Failures(failures) })
    }

    /// Verifies a pod's attachments (CHECK), where version and configuration of the network allow it.
    pub async fn check(&self, pod: &PodId) -> Result<(), CniError> {
        let _running = self.gate.read().await;
        let entries = self.cache.entries(Some(pod.as_str()))?;
        let records = entries.into_iter().filter_map(|entry| entry.record.ok());
        let mut attached = false;
        for record in records {
            let (Some(result), Ok(network)) = (&record.result, conf::from_bytes(&record.config)) else {
                continue;
            };
            attached = true;
            if network.disable_check || network.version < SpecVersion::V0_4_0 {
                continue;
            }
            let outcome = self.runner.check(&network, &record.target(), result).await;
            outcome.map_err(|failure| CniError::Check {
                pod: pod.clone(),
                network: network.name.clone(),
                failures: Failures(vec![failure]),
            })?;
        }
        if attached { Ok(()) } else { Err(CniError::NotAttached(pod.clone())) }
    }

    /// Everything that Berth attached, or began to attach, and did not detach yet; for recovery after a crash.
    pub fn attachments(&self) -> Result<Vec<Recorded>, CniError> {
        let entries = self.cache.entries(None)?;
        Ok(entries.iter().filter_map(undo::recorded).collect())
    }

    fn network(&self) -> Result<Network, NoNetwork> {
        conf::load(&self.conf_dir).map(|(network, _)| network)
    }

    /// The record of an attachment that is about to be made; refuses a second one.
    fn intent(&self, attachment: &Attachment, network: &Network) -> Result<Record, CniError> {
        let origin = Origin {
            version: 1,
            state: State::Adding,
            boot_id: self.boot_id.clone(),
            netns_identity: undo::namespace_identity(&attachment.netns),
        };
        let id = attachment.pod.as_str();
        let mut record = Record::intent(id, &attachment.ifname, (&network.name, &network.bytes), origin);
        record.netns = attachment.netns.to_string_lossy().into_owned();
        record.cni_args = attachment.args()?;
        record.capability_args = attachment.capability_args()?;
        if self.cache.path(&record).exists() {
            let (pod, network) = (attachment.pod.clone(), network.name.clone());
            return Err(CniError::AlreadyAttached { pod, network });
        }
        Ok(record)
    }
}

fn read_result(
    result: serde_json::Value,
    attachment: &Attachment,
    network: &Network,
) -> Result<Attached, Stopped> {
    let said = result.to_string();
    Attached::read(result, &attachment.ifname).map_err(|reason| {
        let plugin = network.plugins.last().map_or_else(String::new, |plugin| plugin.kind.clone());
        let cause = Cause::Rubbish { reason, said: error::excerpt(said.as_bytes()) };
        Stopped { failure: PluginFailure { plugin, verb: Verb::Add, cause }, ran: network.plugins.len() }
    })
}

//! DEL of recorded attachments, finished or not. Knows nothing of pods that are alive.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::cache::{Entry, Origin, Record, State, parts};
use super::conf::{self, Network, SpecVersion};
use super::error::{CniError, PluginFailure};
use super::{Cni, Recorded, orphans};
use crate::model::id::PodId;

/// How long plugins of a dead daemon may take to go when they are killed.
const ORPHANS: Duration = Duration::from_secs(5);
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

impl Cni {
    /// Undoes one record, with the configuration that was used, and removes it. Returns what failed.
    pub(super) async fn detach(&self, entry: Entry) -> Result<Vec<PluginFailure>, CniError> {
        let path = entry.path;
        let unreadable = |source| CniError::Record { action: "reading", path: path.clone(), source };
        let (network, record) = match entry.record {
            Ok(record) => {
                let network = conf::from_bytes(&record.config);
                let network =
                    network.map_err(|p| unreadable(io::Error::new(io::ErrorKind::InvalidData, p)))?;
                (network, record)
            }
            Err(error) => self.guess(&path).ok_or_else(|| unreadable(error))?,
        };
        self.undo(&network, &record, network.plugins.len()).await
    }

    /// DEL of a network's plugins, of which the first `ran` may have done something. What they could not undo is
    /// returned, and the record then stays.
    pub(super) async fn undo(
        &self,
        network: &Network,
        record: &Record,
        ran: usize,
    ) -> Result<Vec<PluginFailure>, CniError> {
        if record.result.is_none() {
            end_orphans(record.container_id.clone()).await;
        }
        let mut target = record.target();
        if !self.has_its_namespace(record) {
            target.netns = String::new();
        }
        let previous = record.result.as_ref().filter(|_| network.version >= SpecVersion::V0_4_0);
        let failures = self.runner.del(network, &target, previous, ran).await;
        if failures.is_empty() {
            self.cache.remove(&self.cache.path(record))?;
        }
        Ok(failures)
    }

    /// Whether the namespace that was attached is still where it was: after a reboot, or when the name was used
    /// again, another one may be there, and that one must not be touched.
    pub(super) fn has_its_namespace(&self, record: &Record) -> bool {
        let now = namespace_identity(Path::new(&record.netns));
        match &record.berth {
            Some(origin) => now.is_some() && now == origin.netns_identity && origin.boot_id == self.boot_id,
            None => now.is_some(),
        }
    }

    /// The best that can be known of an unreadable record: its name, and the configuration of today if it is for the
    /// same network.
    fn guess(&self, path: &Path) -> Option<(Network, Record)> {
        let (name, id, ifname) = parts(path)?;
        let network = self.network().ok().filter(|network| network.name == name)?;
        let origin =
            Origin { version: 1, state: State::Adding, boot_id: String::new(), netns_identity: None };
        let mut record = Record::intent(id, ifname, (name, &network.bytes), origin);
        record.cni_args = vec![["IgnoreUnknown".into(), "1".into()]];
        Some((network, record))
    }
}

/// A record as the recovery sees it; `None` when it is another runtime's.
pub(super) fn recorded(entry: &Entry) -> Option<Recorded> {
    let (network, id, ifname, state) = match &entry.record {
        Ok(record) => {
            let origin = record.berth.as_ref()?;
            (
                record.network_name.as_str(),
                record.container_id.as_str(),
                record.if_name.as_str(),
                Some(origin.state),
            )
        }
        Err(_) => {
            let (network, id, ifname) = parts(&entry.path)?;
            (network, id, ifname, None)
        }
    };
    let pod = PodId::try_from(id.to_string()).ok()?;
    Some(Recorded { pod, network: network.into(), ifname: ifname.into(), state })
}

/// Device and inode of a namespace; `None` when there is none at `path`.
pub(super) fn namespace_identity(path: &Path) -> Option<(u64, u64)> {
    let is_namespace = rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC);
    let stat = rustix::fs::stat(path).ok().filter(|_| is_namespace)?;
    Some((stat.st_dev, stat.st_ino))
}

async fn end_orphans(container_id: String) {
    let id = container_id.clone();
    let ended = tokio::task::spawn_blocking(move || orphans::end(&id, ORPHANS)).await;
    if let Err(error) = ended.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
        tracing::warn!(container_id, %error, "plugins of an unfinished ADD may still run");
    }
}

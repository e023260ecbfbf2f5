//! A host of a test's own: network and mount namespaces of one thread, with empty directories where plugins keep
//! their state, `lo`, and a link `wire0` to the outside world. It ends with the thread, and nothing of it was ever on a
//! disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::runner::Pod;
use crate::exec::Program;
use crate::leaks::{Diff, Snapshot};
use crate::{gate, ns, wait};

/// Where plugins and runtimes keep state: volatile and lasting.
const STATE: [&str; 2] = ["/run", "/var/lib"];
/// How long what a plugin left running may take to end.
const SETTLE: Duration = Duration::from_secs(15);

/// The host, for what runs on its thread.
#[derive(Debug)]
pub struct Host {
    top: PathBuf,
}

impl Host {
    /// Runs `job` on a new host; says so and does nothing where this machine cannot.
    pub fn run(test: &str, job: impl FnOnce(&Host) -> Result<()> + Send + 'static) -> Result<()> {
        if !gate::open_for(test, &["ip", "nft", "tc"]) {
            return Ok(());
        }
        Self::with(job)
    }

    /// Runs `job` on a new host.
    pub fn with<T: Send + 'static>(job: impl FnOnce(&Host) -> Result<T> + Send + 'static) -> Result<T> {
        let dir = tempfile::Builder::new().prefix("c-").rand_bytes(5).tempdir_in("/tmp")?;
        let top = dir.path().to_owned();
        ns::apart(move || {
            for place in STATE.iter().map(Path::new).chain([top.as_path()]) {
                ns::cover(place)?;
            }
            let host = Host { top };
            for dir in [host.pods(), host.scratch(), host.scratch().join("net.d")] {
                std::fs::create_dir_all(dir)?;
            }
            host.own_boot_id()?;
            host.begin()?;
            job(&host)
        })
    }

    /// A directory for the job's own files.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.top.join("files")
    }

    fn pods(&self) -> PathBuf {
        self.top.join("pods")
    }

    fn boot_id(&self) -> PathBuf {
        self.top.join("boot_id")
    }

    /// A pod with a network namespace of its own.
    pub fn pod(&self, id: &str) -> Result<Pod> {
        let netns = self.pods().join(id);
        ns::pin_network(&netns)?;
        Ok(Pod { id: id.to_owned(), netns })
    }

    /// Lets go of the pod's namespace, which ends it.
    pub fn end_pod(&self, pod: &Pod) -> Result<()> {
        ns::unpin_network(&pod.netns)
    }

    /// What a reboot does: no namespace of a pod, new links, rules and volatile files, another boot id.
    pub fn reboot(&self, number: u32) -> Result<()> {
        for entry in std::fs::read_dir(self.pods())? {
            ns::unpin_network(&entry?.path())?;
        }
        for entry in std::fs::read_dir("/run")?.flatten() {
            let path = entry.path();
            let removed = if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
        std::fs::write(self.boot_id(), format!("00000000-0000-4000-8000-{number:012}\n"))?;
        ns::renew_network()?;
        self.begin()
    }

    /// What the host's network and the plugins' state are now.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let lasting: Vec<PathBuf> = ["/var/lib/cni", "/run/cni"].iter().map(PathBuf::from).collect();
        // Ledgers of plugins are named by a number that is new after a reboot.
        let own = std::fs::metadata("/proc/thread-self/ns/net")?;
        Snapshot::of_network(&lasting, &std::os::unix::fs::MetadataExt::ino(&own).to_string())
    }

    /// Fails with what is there and was not `before`, or the reverse, once what plugins left running has had time.
    pub fn expect_no_leaks(&self, before: &Snapshot) -> Result<()> {
        wait::until("an empty leak diff", SETTLE, || {
            let diff = Diff::between(before, &self.snapshot()?);
            ensure!(diff.is_empty(), "{diff}");
            Ok(())
        })
    }

    fn begin(&self) -> Result<()> {
        Program::new("ip").args(["link", "set", "lo", "up"]).silent()?;
        let pair = ["link", "add", "wire0", "type", "veth", "peer", "name", "wire1"];
        Program::new("ip").args(pair).silent()?;
        ["wire0", "wire1"]
            .iter()
            .try_for_each(|end| Program::new("ip").args(["link", "set", end, "up"]).silent())
    }

    /// Puts a file in the place of the kernel's boot id, so that [`Host::reboot`] can change it.
    fn own_boot_id(&self) -> Result<()> {
        let real = Path::new("/proc/sys/kernel/random/boot_id");
        std::fs::write(self.boot_id(), std::fs::read(real)?)?;
        ns::bind(&self.boot_id(), real)
    }
}

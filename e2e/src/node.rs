//! A test node: one long-lived set of namespaces with a registry, a CRI daemon and directories of its own.
//!
//! Everything of the node lives under one short directory (socket paths are bounded) and carries one id, so that what
//! is left of it can be named. When the harness goes, however it goes, the holder ends every process of the node,
//! unmounts and removes its directory.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::UnmountFlags;

use crate::cri::Cri;
use crate::daemon::{Daemon, Setup};
use crate::exec::{Program, Running};
use crate::http::Origin;
use crate::image::set;
use crate::leaks::{Diff, Snapshot};
use crate::processes::{Ancestry, MARKER};
use crate::registry::{Registry, loopback};
use crate::{cgroup, ns, paths, wait};

mod dirs;

pub use dirs::Dirs;

/// Port of the node's registry on its loopback.
const REGISTRY_PORT: u16 = 5000;
/// How long the end of a case may take to become visible everywhere.
const SETTLE: Duration = Duration::from_secs(15);

/// A running node. Dropping it ends everything in it; unless [`Node::end`] was reached its log is shown.
pub struct Node {
    dirs: Dirs,
    setup: Setup,
    daemon: Option<Daemon>,
    registry: Option<Registry>,
    ancestry: Ancestry,
    ended: bool,
    // Last: the holder cleans up when its standard input closes, after daemon and registry are gone.
    holder: Running,
}

impl Node {
    /// Makes the node and waits until its daemon answers.
    pub fn start(setup: Setup) -> Result<Self> {
        let mut node = Self::bare(setup)?;
        node.write_config()?;
        node.start_daemon()?;
        Ok(node)
    }

    /// Makes the namespaces and the registry, and starts no daemon.
    pub fn bare(setup: Setup) -> Result<Self> {
        // As on a real node: users of pods pass through.
        let passable = std::fs::Permissions::from_mode(0o711);
        let dir =
            tempfile::Builder::new().prefix("b-").rand_bytes(5).permissions(passable).tempdir_in("/tmp")?;
        let dir = dir.keep();
        let dirs = Dirs(dir);
        let program = Program::new(paths::node_program()?).arg("hold").arg(dirs.top());
        let mut holder = program.start_piped()?;
        let mut first = String::new();
        BufReader::new(holder.child.stdout.take().context("holder has no stdout")?).read_line(&mut first)?;
        ensure!(first.trim() == "ready", "the node's holder said {first:?}");
        let namespaces = ["mnt", "net"].iter().filter_map(|kind| ns::identity(holder.pid(), kind)).collect();
        let ancestry = Ancestry { id: dirs.id(), namespaces };
        let mut node = Self { dirs, setup, daemon: None, registry: None, ancestry, ended: false, holder };
        node.make_dirs()?;
        node.start_registry()?;
        Ok(node)
    }

    /// A program that runs inside the node's namespaces and carries its marker.
    #[must_use]
    pub fn program(&self, path: impl AsRef<Path>) -> Program {
        let enter = paths::node_program().unwrap_or_else(|_| PathBuf::from("e2e-node"));
        Program::new(enter)
            .args(["enter".to_owned(), self.holder_pid().to_string()])
            .arg(path.as_ref())
            .env(MARKER, &self.ancestry.id)
    }

    /// A client of the node's CRI socket.
    pub async fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.dirs.socket(), &self.dirs.logs()).await
    }

    /// The daemon, which must be running.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("the daemon is not running")
    }

    /// Starts the daemon with the configuration on disk, and waits until it answers.
    pub fn start_daemon(&mut self) -> Result<()> {
        let daemon = Daemon::start(self)?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Asks the daemon for an orderly end and waits for it; its pods live on.
    pub fn stop_daemon(&mut self) -> Result<()> {
        let daemon = self.daemon.take().context("the daemon is not running")?;
        let status = daemon.terminate(SETTLE)?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }

    /// Ends the daemon by SIGKILL and reaps it; its pods live on.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.take().context("the daemon is not running").map(drop)
    }

    /// What a reboot does, but for the kernel's own objects outside of pods: no process of a pod, nothing mounted or
    /// left below the volatile directories, and another boot id. The daemon must not be running.
    pub fn reboot(&self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon is running");
        wait::until("the end of the pods' processes", SETTLE, || {
            ensure!(self.ancestry.kill_all(&self.own_pids())?, "some are left");
            Ok(())
        })?;
        let volatile = [self.dirs.state(), self.dirs.netns()];
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.holder_pid()))?;
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for point in points.filter(|point| volatile.iter().any(|dir| point.starts_with(dir))) {
            self.program("umount").args(["--lazy"]).arg(point).ok()?;
        }
        for dir in &volatile {
            std::fs::remove_dir_all(dir)?;
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(self.boot_id_file(), "00000000-0000-4000-8000-000000000001\n")?;
        Ok(())
    }

    /// Puts a file of the node's in the place of the kernel's boot id, so that [`Node::reboot`] can change it.
    pub fn own_boot_id(&self) -> Result<()> {
        let real = "/proc/sys/kernel/random/boot_id";
        std::fs::copy(real, self.boot_id_file())?;
        self.program("mount").arg("--bind").arg(self.boot_id_file()).arg(real).silent()
    }

    fn boot_id_file(&self) -> PathBuf {
        self.dirs.top().join("boot_id")
    }

    /// What the node has now.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(self)
    }

    /// What the node has once nothing moves any more: two looks agree.
    pub fn settled_snapshot(&self) -> Result<Snapshot> {
        let mut last = self.snapshot()?;
        wait::until("two looks that agree", SETTLE, || {
            let now = self.snapshot()?;
            let diff = Diff::between(&last, &now);
            let agree = now == last;
            last = now;
            ensure!(agree, "{diff}");
            Ok(())
        })?;
        Ok(last)
    }

    /// Fails with the list of what is there and was not, or is gone and was there, once it has had time to settle.
    pub fn expect_no_leaks(&self, before: &Snapshot) -> Result<()> {
        wait::until("an empty leak diff", SETTLE, || {
            let diff = Diff::between(before, &self.snapshot()?);
            ensure!(diff.is_empty(), "{diff}");
            Ok(())
        })
    }

    /// The case went well: nothing more to show.
    pub fn end(mut self) {
        self.ended = true;
    }

    /// Directories.
    #[must_use]
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// How it was set up.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// What identifies its processes.
    #[must_use]
    pub fn ancestry(&self) -> &Ancestry {
        &self.ancestry
    }

    /// Pid of the process that holds the namespaces.
    #[must_use]
    pub fn holder_pid(&self) -> u32 {
        self.holder.child.id()
    }

    /// Pid of the daemon, when there is one.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<i32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    /// Pids that belong to the harness and are never a leak.
    #[must_use]
    pub fn own_pids(&self) -> Vec<i32> {
        let registry = self.registry.as_ref().map(Registry::pid);
        let holder = self.holder.pid().as_raw_nonzero().get();
        registry.into_iter().chain(self.daemon_pid()).chain([holder]).collect()
    }

    /// Where the node's registry listens.
    #[must_use]
    pub fn registry(&self) -> Origin {
        Origin { address: loopback(REGISTRY_PORT), holder: Some(self.holder_pid()) }
    }

    /// Writes the daemon's configuration and the CNI configuration anew.
    pub fn write_config(&self) -> Result<()> {
        self.setup.write(&self.dirs)
    }

    fn make_dirs(&self) -> Result<()> {
        let cni = self.dirs.cni();
        for dir in [self.dirs.root(), self.dirs.state(), self.dirs.netns(), self.dirs.logs(), cni.join("bin")]
        {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::create_dir_all(cni.join("net.d"))?;
        Ok(())
    }

    fn start_registry(&mut self) -> Result<()> {
        let store = self.dirs.top().join("registry");
        Program::new("cp").arg("-a").arg(set::store()?).arg(&store).ok()?;
        let program = self.program("docker-registry");
        self.registry = Some(Registry::launch(program, &store, self.dirs.top(), self.registry())?);
        Ok(())
    }

    fn show_log(&self) {
        let log = std::fs::read_to_string(self.dirs.daemon_log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("--- log of the daemon of node {} ---", self.dirs.id());
        lines.iter().skip(lines.len().saturating_sub(200)).for_each(|line| eprintln!("{line}"));
        eprintln!("--- end of log ---");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.ended {
            self.show_log();
        }
        self.daemon = None;
        self.registry = None;
        drop(self.holder.child.stdin.take());
        if let Err(error) = self.holder.wait(Duration::from_secs(60)) {
            eprintln!("the node's holder did not clean up: {error:#}");
        }
    }
}

/// The holder's life: makes the namespaces, waits for the harness to go, and removes what the node was.
pub fn hold(dir: &Path) -> Result<()> {
    let id = Dirs(dir.to_owned()).id();
    // An interrupt from the terminal ends the harness; the holder has to live on and clean up.
    rustix::process::setsid().context("leave the terminal")?;
    ns::make(&id)?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    clean_up(dir, &id)
}

/// Takes every step, whatever the ones before came to, and fails with all that went wrong.
fn clean_up(dir: &Path, id: &str) -> Result<()> {
    let this = rustix::process::getpid();
    let namespaces = ["mnt", "net"].iter().filter_map(|kind| ns::identity(this, kind)).collect();
    let ancestry = Ancestry { id: id.to_owned(), namespaces };
    let ended = wait::until("the end of the node's processes", Duration::from_secs(30), || {
        let none = ancestry.kill_all(&[this.as_raw_nonzero().get()])?;
        ensure!(none, "some are left");
        Ok(())
    });
    let cgroups =
        wait::until("the end of the node's cgroups", Duration::from_secs(10), || cgroup::remove(id));
    // What is mounted below may be a directory of the machine: never remove through it.
    let removed = unmount_below(dir)
        .and_then(|()| std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display())));
    let failed: Vec<String> = [ended, cgroups, removed]
        .into_iter()
        .filter_map(|step| step.err().map(|error| format!("{error:#}")))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "the holder undoes the node's mounts")]
fn unmount_below(dir: &Path) -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let below: Vec<&Path> = points.filter(|point| point.starts_with(dir)).collect();
    for point in below.iter().rev() {
        rustix::mount::unmount(*point, UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}

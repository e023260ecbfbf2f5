//! Namespaces of a node: made by its holder, entered by everything that belongs to the node.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change};
use rustix::process::{Pid, Signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::exec::Program;

/// The namespaces of a node in the order in which they are entered; the mount namespace last, since the others are
/// found through it.
const KINDS: [(&str, LinkNameSpaceType); 4] = [
    ("net", LinkNameSpaceType::Network),
    ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
    ("ipc", LinkNameSpaceType::InterProcessCommunication),
    ("mnt", LinkNameSpaceType::Mount),
];

/// Gives the calling process, which must have one thread, the namespaces of a new node: `/` shared, no hybrid
/// cgroup2 mount (crun takes no mixed hierarchy), `lo` up, an own host name.
#[allow(clippy::disallowed_methods, reason = "a node's mounts are made here")]
pub fn make(hostname: &str) -> Result<()> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    // SAFETY: the holder has one thread, so no other thread sees its file system context change.
    unsafe { unshare_unsafe(flags) }.context("unshare the node's namespaces")?;
    let recursive = MountPropagationFlags::REC;
    mount_change("/", MountPropagationFlags::PRIVATE | recursive).context("make / private")?;
    mount_change("/", MountPropagationFlags::SHARED | recursive).context("make / shared")?;
    without_unified_cgroup()?;
    rustix::system::sethostname(hostname.as_bytes()).context("set the host name")?;
    Program::new("ip").args(["link", "set", "lo", "up"]).ok()?;
    Ok(())
}

/// Takes the hybrid cgroup2 mount out of the calling thread's mount namespace: crun takes no mixed hierarchy.
#[allow(clippy::disallowed_methods, reason = "what a node's namespaces have is decided here")]
pub fn without_unified_cgroup() -> Result<()> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.join("cgroup.procs").exists() {
        return Ok(());
    }
    rustix::mount::unmount(unified, UnmountFlags::DETACH).context("unmount the hybrid cgroup2")
}

/// Moves the calling process, which must have one thread, into the namespaces of `holder`.
pub fn enter(holder: u32) -> Result<()> {
    let files = KINDS
        .iter()
        .map(|(name, kind)| Ok((open(holder, name)?, *kind)))
        .collect::<Result<Vec<(File, LinkNameSpaceType)>>>()?;
    for (file, kind) in &files {
        move_into_link_name_space(file.as_fd(), Some(*kind)).with_context(|| format!("enter {kind:?}"))?;
    }
    Ok(())
}

/// Runs `job` on a thread inside the network namespace of `holder`. Sockets that it makes stay there.
pub fn in_network_of<T: Send + 'static>(
    holder: u32,
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let file = open(holder, "net")?;
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .context("enter the network namespace")?;
        job()
    });
    thread.join().map_err(|_| anyhow::anyhow!("the thread inside the network namespace panicked"))?
}

/// Runs `job` on a thread with network and mount namespaces of its own, which end with the thread.
#[allow(clippy::disallowed_methods, reason = "the thread's own mounts must not reach anybody else")]
pub fn apart<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(move || {
        // SAFETY: a mount namespace of its own gives the thread its own root and working directory as well; no other
        // thread sees that, and the descriptor table stays shared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }
            .context("unshare namespaces")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("make / private")?;
        job()
    });
    thread.join().map_err(|_| anyhow::anyhow!("the thread apart panicked"))?
}

/// Gives the calling thread, which must be apart already, another new network namespace.
pub fn renew_network() -> Result<()> {
    // SAFETY: only the calling thread's network namespace changes; descriptors stay as they are.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("unshare the network namespace")
}

/// Puts an empty tmpfs over a directory of the calling thread's mount namespace.
#[allow(clippy::disallowed_methods, reason = "the mounts of a host that is apart are made here")]
pub fn cover(dir: &Path) -> Result<()> {
    let mode = Some(c"mode=0755");
    rustix::mount::mount("tmpfs", dir, "tmpfs", rustix::mount::MountFlags::empty(), mode)
        .with_context(|| format!("mount a tmpfs on {}", dir.display()))
}

/// Shows `source` at `target` too, in the calling thread's mount namespace.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    rustix::mount::mount_bind(source, target)
        .with_context(|| format!("bind {} to {}", source.display(), target.display()))
}

/// Makes a network namespace that lives as long as it is pinned to `path`, a file that is made.
pub fn pin_network(path: &Path) -> Result<()> {
    File::create(path).with_context(|| format!("make {}", path.display()))?;
    std::thread::scope(|scope| {
        let pinning = scope.spawn(|| {
            renew_network()?;
            bind(Path::new("/proc/thread-self/ns/net"), path)
        });
        pinning.join().map_err(|_| anyhow::anyhow!("the thread in the new network namespace panicked"))?
    })
}

/// Undoes [`pin_network`], and what it was undone by already.
#[allow(clippy::disallowed_methods, reason = "undoes the pin that was made here")]
pub fn unpin_network(path: &Path) -> Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno).with_context(|| format!("unmount {}", path.display())),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs `job` on a thread inside the network namespace that is pinned to `path`. Sockets that it makes stay there.
pub fn in_network_at<T: Send>(path: &Path, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .context("enter the network namespace")?;
            job()
        });
        thread.join().map_err(|_| anyhow::anyhow!("the thread inside the network namespace panicked"))?
    })
}

/// Asks the kernel for `signal` when the parent ends.
pub fn end_with_parent(signal: Signal) -> Result<()> {
    set_parent_process_death_signal(Some(signal)).context("set the parent death signal")
}

/// Inode numbers of a process's namespace of that kind, as `/proc` shows it.
#[must_use]
pub fn identity(pid: Pid, kind: &str) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{}/ns/{kind}", pid.as_raw_nonzero())).ok()?;
    Some(link.to_string_lossy().into_owned())
}

fn open(pid: u32, kind: &str) -> Result<File> {
    let path = format!("/proc/{pid}/ns/{kind}");
    File::open(&path).with_context(|| format!("open {path}"))
}

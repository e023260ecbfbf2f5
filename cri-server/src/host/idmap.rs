//! Mounts that show other owners: what root owns on disk belongs to the root of a pod's user namespace in them.
//!
//! Made here and not by the OCI runtimes, of which only recent ones can. Nothing is changed on disk.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::{Pid, WaitOptions};

use crate::model::id_range::IdRange;

/// A user namespace; the ids of mounts and containers.
#[derive(Debug)]
pub struct UserNamespace(OwnedFd);

/// How much of a tree of mounts is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The mount that the path is on.
    One,
    /// It and all that is mounted below.
    All,
}

impl UserNamespace {
    /// The one that is pinned at `pin`.
    pub fn open(pin: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(pin, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// A new one without a process, as long as the value lives or a mount uses it.
    pub fn new(ids: IdRange) -> io::Result<Self> {
        let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let child = fork_waiting(&reading)?;
        let proc = |file: &str| format!("/proc/{}/{file}", child.as_raw_nonzero());
        let line = format!("{ids}\n");
        let made = std::fs::write(proc("uid_map"), &line)
            .and_then(|()| std::fs::write(proc("gid_map"), &line))
            .and_then(|()| Self::open(Path::new(&proc("ns/user"))));
        let _ended_already = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(child), WaitOptions::empty()))?;
        drop(writing);
        made
    }
}

/// A process in a new user namespace that ends when all other ends of the pipe are closed.
fn fork_waiting(pipe: &OwnedFd) -> io::Result<Pid> {
    // SAFETY: all-zero is the documented default of every field.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_NEWUSER as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    let size = size_of::<libc::clone_args>();
    // SAFETY: without CLONE_VM this is a fork. Other threads may have held locks, so the child does nothing but
    // system calls, and never returns from here.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    if pid == 0 {
        let mut byte = 0u8;
        // SAFETY: reads into a byte of this frame; the child ends here. It dies with this thread at the latest.
        unsafe {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::syscall(libc::SYS_read, pipe.as_raw_fd(), &raw mut byte, 1);
            libc::_exit(0);
        }
    }
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(io::Error::last_os_error)
}

/// A detached copy of the mount at `source` with the owners that `namespace` gives; changes of mounts on either side
/// stay there, or come in from the source where `propagation` says so. `InvalidInput`: a file system that cannot.
pub fn copy(
    source: &Path,
    depth: Depth,
    namespace: &UserNamespace,
    propagation: MountPropagationFlags,
) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mut at = libc::AT_EMPTY_PATH;
    if depth == Depth::All {
        flags |= OpenTreeFlags::AT_RECURSIVE;
        at |= libc::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(CWD, source, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: propagation.bits().into(),
        userns_fd: namespace.0.as_raw_fd() as u64,
    };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor; the structure is read only and outlives the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            at,
            &raw const attributes,
            size,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}

/// Attaches a detached mount at `target`.
pub fn attach(mount: impl AsFd, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Does `work` in a thread whose mounts nobody else sees: what it leaves there goes with it.
pub fn in_private_mounts<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let private = move || {
        // SAFETY: only the mounts and the working directory of this thread become its own.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } < 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mounts".into()).stack_size(256 << 10);
        let thread = thread.spawn_scoped(scope, private)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread for mounts died")))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_shows_other_owners_and_the_source_does_not() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("E2E_REQUIRE").is_none_or(|v| v != "1"), "this test needs root");
            eprintln!("SKIPPED: this test needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&target).unwrap();
        std::fs::write(source.join("file"), "").unwrap();
        let namespace = UserNamespace::new(IdRange::new(70_000, 10).unwrap()).unwrap();
        let owner = |path: &Path| std::fs::metadata(path.join("file")).unwrap().uid();
        in_private_mounts(|| {
            let copied = copy(&source, Depth::All, &namespace, MountPropagationFlags::PRIVATE)?;
            attach(copied, &target)?;
            assert_eq!((owner(&source), owner(&target)), (0, 70_000));
            Ok(())
        })
        .unwrap();
        assert!(!target.join("file").exists(), "the mount outlived its thread");
        let error = in_private_mounts(|| {
            copy(Path::new("/proc"), Depth::One, &namespace, MountPropagationFlags::PRIVATE)
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

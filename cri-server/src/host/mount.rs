//! Mounts of the daemon: a pod's shared memory, and the undoing of mounts and pins.

use std::io;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// Mounts a pod's shared memory at `target`, `size` bytes large.
#[allow(clippy::disallowed_methods, reason = "host/ makes mounts")]
pub fn shm(target: &Path, size: u64) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(format!("mode=1777,size={size}")).map_err(io::Error::other)?;
    Ok(rustix::mount::mount("shm", target, "tmpfs", flags, Some(options.as_c_str()))?)
}

/// Unmounts everything that is mounted at `target`; nothing there is success.
#[allow(clippy::disallowed_methods, reason = "host/ undoes mounts")]
pub fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes a pin of a namespace away: the mount and the file under it.
pub fn unpin(pin: &Path) -> io::Result<()> {
    unmount(pin)?;
    match rustix::fs::unlinkat(rustix::fs::CWD, pin, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a tree; nothing there is success. Never follows a link.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _removed => Ok(()),
    }
}

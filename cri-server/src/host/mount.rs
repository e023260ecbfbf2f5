//! Mounts of the daemon: a pod's shared memory, and the undoing of mounts and pins.

use std::io;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// Mounts a pod's shared memory at `target`, `size` bytes large; it belongs to the user and group `owner`.
#[allow(clippy::disallowed_methods, reason = "host/ makes mounts")]
pub fn shm(target: &Path, size: u64, owner: u32) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = format!("mode=1777,size={size},uid={owner},gid={owner}");
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
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

/// Unmounts what is on the entries of `directory`, and removes it; nothing there is success. Never walks into a mount:
/// the files there are somebody's volume.
pub fn clear(directory: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // Of a shared tree the unmount of what is below would take it away from the source, too.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        match rustix::mount::mount_change(entry.path(), private) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        unmount(&entry.path())?;
        let kind = if entry.file_type()?.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        gone(rustix::fs::unlinkat(rustix::fs::CWD, entry.path(), kind))?;
    }
    gone(rustix::fs::unlinkat(rustix::fs::CWD, directory, AtFlags::REMOVEDIR))
}

/// Takes a pin of a namespace away: the mount and the file under it.
pub fn unpin(pin: &Path) -> io::Result<()> {
    unmount(pin)?;
    gone(rustix::fs::unlinkat(rustix::fs::CWD, pin, AtFlags::empty()))
}

/// What was not there has been removed.
fn gone(removed: Result<(), Errno>) -> io::Result<()> {
    match removed {
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

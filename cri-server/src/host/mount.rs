//! Mounts of the daemon: a pod's shared memory, and the undoing of mounts and pins.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
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

/// Removes a tree; nothing there is success. Never follows a link, and never walks into a mount, which may be
/// somebody's volume: that is an error. The tree may be of any depth.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return gone(rustix::fs::unlinkat(rustix::fs::CWD, path, AtFlags::empty()));
        }
        Err(error) => return gone(Err(error)),
    };
    let mut removal = Removal { top: &top, raised: 0 };
    loop {
        let before = removal.raised;
        removal.empty(&top, 0)?;
        // What was raised may have come behind the place up to which the directory was read.
        if removal.raised == before {
            break;
        }
    }
    gone(rustix::fs::unlinkat(rustix::fs::CWD, path, AtFlags::REMOVEDIR))
}

/// Deepest directory that is emptied where it is; each level costs a descriptor.
const DEEPEST: usize = 64;

/// One removal of a tree.
struct Removal<'a> {
    top: &'a OwnedFd,
    /// Directories that were too deep and are below `top` now.
    raised: usize,
}

impl Removal<'_> {
    fn empty(&mut self, directory: &OwnedFd, depth: usize) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inside = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
            let is_file = !matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            let child = match is_file {
                true => Err(Errno::NOTDIR),
                false => rustix::fs::openat2(directory, name, flags, Mode::empty(), inside),
            };
            match child {
                Ok(_) if depth == DEEPEST => {
                    self.raised += 1;
                    let raised = format!(".raised-{}", self.raised);
                    gone(rustix::fs::renameat(directory, name, self.top, raised.as_str()))?;
                }
                Ok(child) => {
                    self.empty(&child, depth + 1)?;
                    gone(rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR))?;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    gone(rustix::fs::unlinkat(directory, name, AtFlags::empty()))?;
                }
                Err(Errno::XDEV) => {
                    let name = name.to_string_lossy();
                    return Err(io::Error::new(
                        io::ErrorKind::ResourceBusy,
                        format!("{name} is a mount point"),
                    ));
                }
                Err(error) => gone(Err(error))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_of_any_depth_and_shape_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        std::fs::create_dir_all(tree.join("a/".repeat(300))).unwrap();
        std::fs::create_dir_all(tree.join("b/".repeat(70))).unwrap();
        std::fs::write(tree.join("b/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", tree.join("a/dangling")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_mount_is_not_walked_into() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, volume) = (dir.path().join("tree"), dir.path().join("volume"));
        for path in [&tree.join("a/mounted"), &volume] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::write(volume.join("kept"), "x").unwrap();
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("E2E_REQUIRE").is_none_or(|v| v != "1"), "not root");
            eprintln!("SKIPPED: mounts need root");
            return;
        }
        rustix::mount::mount_bind(&volume, tree.join("a/mounted")).unwrap();
        let refused = remove_tree(&tree).unwrap_err();
        assert_eq!(refused.to_string(), "mounted is a mount point");
        assert!(volume.join("kept").exists());
        unmount(&tree.join("a/mounted")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && volume.join("kept").exists());
    }
}

//! Files: atomic writes, bounded reads, and paths inside a root that others control.
//!
//! A path of a container's root or of an image is never resolved by name: only through a directory descriptor
//! with `openat2` and `RESOLVE_IN_ROOT`, so that neither `..` nor a symlink leaves the root.
//!
//! A file that must outlast a power cut is renamed first and synced then. fsync(2) promises the file and not its name;
//! these do more, because a renaming changes the file's own inode (its change time) in the same step as the directory,
//! and syncing the file makes that step safe:
//!
//! - ext4: both are in one transaction of the journal, and fsync commits the inode's last one. Without a journal it
//!   writes the parents of an inode whose name is new.
//! - XFS: both are in one transaction, and fsync forces the log up to the inode's last one; the log is in order, so
//!   that nothing before it can be missing.
//! - btrfs: the file's log item has its names, and replaying the log makes the directory's entries from them; a
//!   renaming that the log cannot tell has fsync commit everything.
//!
//! On every other file system the directory is synced as well, which on these would be another flush of the disk for
//! nothing. ext2 has ext4's number and none of this: after a power cut it wants a repair before anything else.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// Whether bytes must be safe against power loss before a call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// File and directory entry are synced. A power cut before that may leave the name with a part of the bytes: they
    /// must prove themselves.
    Synced,
    /// Safe against the death of any process, not against power loss.
    Cached,
}

/// Replaces `path` by a file with `bytes` and `mode`: readers see the old file or the new one, never a part.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let temporary = parent.join(format!(".{}.new", name.to_string_lossy()));
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = std::fs::File::from(rustix::fs::open(&temporary, flags, Mode::from_raw_mode(mode))?);
    file.write_all(bytes)?;
    std::fs::rename(&temporary, path)?;
    if durability == Durability::Synced {
        // After the renaming: one commit of the journal then has both.
        file.sync_all()?;
        if !names_follow(&file)? {
            std::fs::File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

/// Whether syncing a file makes its newest name safe too, as the module's text says.
fn names_follow(file: &std::fs::File) -> io::Result<bool> {
    const BTRFS: i64 = 0x9123_683e;
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    let kind = rustix::fs::fstatfs(file)?.f_type;
    Ok(matches!(kind, BTRFS | EXT4 | XFS))
}

/// Makes a directory that others may enter, and its parents, whatever the process's umask is. What exists stays as it is.
pub fn create_open_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), create_open_directories)?;
    match std::fs::create_dir(path) {
        Ok(()) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens a directory for use as a root of [`open_in_root`].
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens `path` as a process whose root directory is `root` would, without following magic links.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel could not prove that a concurrent rename kept the walk inside the root: walk again.
            Err(rustix::io::Errno::AGAIN) => continue,
            other => return Ok(other?),
        }
    }
}

/// Reads a regular file inside `root`, at most `limit` bytes; `None` when nothing is there.
///
/// Anything but a regular file (a FIFO, a device, a directory) and a longer file are errors, without blocking.
pub fn read_in_root(root: impl AsFd, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_in_root(root, path, flags) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    read_bounded(std::fs::File::from(file), limit).map(Some)
}

/// Reads to the end, and fails when there are more than `limit` bytes.
pub fn read_bounded(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_does_not_leave_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/passwd"), "inside").unwrap();
        std::fs::write(dir.path().join("passwd"), "outside").unwrap();
        std::os::unix::fs::symlink("/etc", root.join("abs")).unwrap();
        std::os::unix::fs::symlink("../../../passwd", root.join("up")).unwrap();
        let fd = open_root(&root).unwrap();
        let read = |path: &str| read_in_root(&fd, Path::new(path), 100).unwrap();
        assert_eq!(read("abs/passwd"), Some(b"inside".to_vec()));
        assert_eq!(read("up"), None);
        assert_eq!(read("../passwd"), None);
    }

    #[test]
    fn only_short_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_root(dir.path()).unwrap();
        rustix::fs::mknodat(&fd, "fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::fs::write(dir.path().join("long"), [0u8; 11]).unwrap();
        assert!(read_in_root(&fd, Path::new("fifo"), 10).is_err());
        assert!(read_in_root(&fd, Path::new("long"), 10).is_err());
    }
}

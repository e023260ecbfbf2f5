//! Owner, mode, extended attributes and times of what a layer holds.
//!
//! Of the attributes that an image may carry only those that mean something to a container are set: `user.*` and
//! file capabilities. Those that overlayfs reads (`trusted.overlay.*`, `user.overlay.*`) would let an image redirect
//! its own layers, and security labels are the node's to choose.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

const OPAQUE: &str = "trusted.overlay.opaque";
const CAPABILITY: &[u8] = b"security.capability";
const MAX_XATTR_LIST: usize = 64 << 10;

/// Metadata of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes that images may carry.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for Attributes {
    /// Those of a directory that no layer describes.
    fn default() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }
}

impl Attributes {
    /// Reads them from an open file or directory.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            xattrs: xattrs(fd.as_fd())?,
        })
    }

    /// Whether they are what a directory gets that no layer describes.
    pub fn are_default(&self) -> bool {
        *self == Self { mtime: self.mtime, ..Self::default() }
    }

    /// Sets all but the times on an open file or directory; owner first, since chown clears bits and capabilities.
    pub fn apply(&self, fd: impl AsFd) -> io::Result<()> {
        let fd = fd.as_fd();
        rustix::fs::fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode))?;
        self.xattrs.iter().try_for_each(|(name, value)| set_xattr(fd, name, value))
    }

    /// Sets the times of an open file or directory.
    pub fn apply_times(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(rustix::fs::futimens(fd, &self.times())?)
    }

    /// Sets owner, mode and times of `name` in `parent`, which is neither a regular file nor a directory.
    /// A symbolic link has no mode and is not followed.
    pub fn apply_at(&self, parent: impl AsFd, name: &[u8], has_mode: HasMode) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if has_mode == HasMode::Yes {
            rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(&parent, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: i64::from(self.mtime.1) };
        Timestamps { last_access: time, last_modification: time }
    }
}

/// Whether a node has permission bits of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HasMode {
    /// Devices and pipes.
    Yes,
    /// Symbolic links.
    No,
}

/// Whether an image may set the attribute.
pub fn is_allowed(name: &[u8]) -> bool {
    name == CAPABILITY || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn set_xattr(fd: BorrowedFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    if !is_allowed(name) {
        return Ok(());
    }
    match rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
        // Not every file system stores the attributes of users; nothing in a container depends on them.
        Err(Errno::OPNOTSUPP) if name != CAPABILITY => Ok(()),
        other => Ok(other?),
    }
}

fn xattrs(fd: BorrowedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; 4096];
    let length = loop {
        match rustix::fs::flistxattr(fd, &mut list[..]) {
            Err(Errno::RANGE) if list.len() < MAX_XATTR_LIST => list.resize(list.len() * 2, 0),
            Err(Errno::OPNOTSUPP) => break 0,
            other => break other?,
        }
    };
    let names = list[..length].split(|&b| b == 0).filter(|name| is_allowed(name));
    let mut found: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; MAX_XATTR_LIST];
            let length = rustix::fs::fgetxattr(fd, name, &mut value[..])?;
            value.truncate(length);
            Ok((name.to_vec(), value))
        })
        .collect::<io::Result<_>>()?;
    found.sort();
    Ok(found)
}

/// Makes a directory hide what lower layers have under its name.
pub fn set_opaque(directory: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())?)
}

/// The same of a directory that is not open; false where it cannot be read.
pub fn is_opaque_path(directory: &std::path::Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(directory, OPAQUE, &mut value[..]).is_ok_and(|length| length == 1 && value == *b"y")
}

/// Whether a directory hides what lower layers have under its name.
pub fn is_opaque(directory: impl AsFd) -> io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut value[..]) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

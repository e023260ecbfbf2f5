//! A tree made anew from another, content and all: what an image has at the place of a volume. Bounded, and with holes
//! and hard links kept, so that the copy takes no more than the tree that it is made from.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::copy::{copy_directory_attributes, copy_node_within};
use super::tree::{children, is_directory};

/// Deepest tree that is copied: a descriptor is held for each level, twice. No layer is deeper.
const MAX_DEPTH: usize = 256;
const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What may still be copied.
pub struct Allowance<'a> {
    /// Bytes of content; holes are free.
    pub bytes: u64,
    /// Files, directories and others.
    pub entries: u64,
    /// Whether nobody wants the copy any more.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl Allowance<'_> {
    /// Takes so many bytes and entries from it.
    fn spend(&mut self, bytes: u64, entries: u64) -> io::Result<()> {
        if (self.cancelled)() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match (self.bytes.checked_sub(bytes), self.entries.checked_sub(entries)) {
            (Some(bytes), Some(entries)) => {
                (self.bytes, self.entries) = (bytes, entries);
                Ok(())
            }
            _ => Err(io::Error::new(io::ErrorKind::QuotaExceeded, "more than is copied from an image")),
        }
    }
}

/// Fills the empty directory `to` with a copy of `from`, and gives it the attributes of that. Neither tree changes
/// meanwhile.
pub fn duplicate(from: impl AsFd, to: impl AsFd, allowance: &mut Allowance<'_>) -> io::Result<()> {
    let mut copy = Duplicate { root: to.as_fd(), allowance, first_names: HashMap::new() };
    copy.directory(from.as_fd(), to.as_fd(), Path::new(""), MAX_DEPTH)
}

struct Duplicate<'a, 'b> {
    root: BorrowedFd<'a>,
    allowance: &'a mut Allowance<'b>,
    /// Copies of files that have several names, by device and inode.
    first_names: HashMap<(u64, u64), PathBuf>,
}

impl Duplicate<'_, '_> {
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
        for name in children(from)? {
            let stat = rustix::fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.allowance.spend(0, 1)?;
            let path = path.join(&name);
            if is_directory(&stat) {
                rustix::fs::mkdirat(to, &name, Mode::from_raw_mode(0o700))?;
                let source = rustix::fs::openat(from, &name, OPEN_DIRECTORY, Mode::empty())?;
                let copy = rustix::fs::openat(to, &name, OPEN_DIRECTORY, Mode::empty())?;
                self.directory(source.as_fd(), copy.as_fd(), &path, depth)?;
            } else if stat.st_nlink < 2 {
                self.file(from, to, &name)?;
            } else if !self.link((stat.st_dev, stat.st_ino), to, &name)? {
                self.file(from, to, &name)?;
                self.first_names.insert((stat.st_dev, stat.st_ino), path);
            }
        }
        copy_directory_attributes(from, to)
    }

    fn file(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        copy_node_within(from, name, to, &mut |bytes| self.allowance.spend(bytes, 0))
    }

    /// Gives the copy of a file a further name; false where there is none yet, or no name for it.
    fn link(&self, file: (u64, u64), to: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
        let Some(first) = self.first_names.get(&file) else { return Ok(false) };
        match rustix::fs::linkat(self.root, first, to, name, AtFlags::empty()) {
            Err(Errno::MLINK | Errno::NAMETOOLONG) => Ok(false),
            other => other.map(|()| true).map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FileType, XattrFlags};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn open(path: &Path) -> std::os::fd::OwnedFd {
        rustix::fs::open(path, OPEN_DIRECTORY, Mode::empty()).unwrap()
    }

    fn copied(from: &Path, to: &Path, bytes: u64, entries: u64) -> io::Result<()> {
        let mut allowance = Allowance { bytes, entries, cancelled: &|| false };
        duplicate(open(from), open(to), &mut allowance)
    }

    #[test]
    fn a_copy_is_the_same_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for directory in [&from, &to, &from.join("sub"), &from.join("sub/deep")] {
            std::fs::create_dir(directory).unwrap();
        }
        std::fs::write(from.join("sub/one"), "content").unwrap();
        std::fs::hard_link(from.join("sub/one"), from.join("two")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        rustix::fs::mknodat(open(&from), "fifo", FileType::Fifo, Mode::from_raw_mode(0o620), 0).unwrap();
        std::fs::set_permissions(from.join("sub/one"), PermissionsExt::from_mode(0o4751)).unwrap();
        std::fs::set_permissions(from.join("sub"), PermissionsExt::from_mode(0o1711)).unwrap();
        std::fs::set_permissions(&from, PermissionsExt::from_mode(0o750)).unwrap();
        let sparse = std::fs::File::create(from.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (1 << 29) + 1).unwrap();
        let attributed = rustix::fs::setxattr(from.join("sub/one"), "user.x", b"v", XattrFlags::empty());

        copied(&from, &to, 1 << 20, 7).unwrap();
        let stat = |path: &Path| std::fs::symlink_metadata(path).unwrap();
        for name in ["", "sub", "sub/deep", "sub/one", "two", "link", "fifo", "sparse"] {
            let (a, b) = (stat(&from.join(name)), stat(&to.join(name)));
            let facts = |m: &std::fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
            assert_eq!(facts(&a), facts(&b), "{name}");
            assert_ne!(a.ino(), b.ino(), "{name}");
            assert!(a.is_dir() || a.len() == b.len(), "{name}");
        }
        assert_eq!(std::fs::read(to.join("two")).unwrap(), b"content");
        assert_eq!(stat(&to.join("two")).ino(), stat(&to.join("sub/one")).ino());
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(stat(&to.join("sparse")).blocks() < 1000, "holes are filled");
        if attributed.is_ok() {
            let mut value = [0; 4];
            assert_eq!(rustix::fs::getxattr(to.join("two"), "user.x", &mut value[..]).unwrap(), 1);
        }
    }

    #[test]
    fn what_is_too_much_or_unwanted_is_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir(&from).unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(from.join(name), [7; 100]).unwrap();
        }
        let check = |name: &str, bytes, entries, expect: Option<io::ErrorKind>| {
            let to = dir.path().join(name);
            std::fs::create_dir(&to).unwrap();
            assert_eq!(copied(&from, &to, bytes, entries).err().map(|e| e.kind()), expect, "{name}");
        };
        check("enough", 300, 3, None);
        check("few-bytes", 299, 3, Some(io::ErrorKind::QuotaExceeded));
        check("few-entries", 300, 2, Some(io::ErrorKind::QuotaExceeded));
        let deep: PathBuf = std::iter::repeat_n("d", MAX_DEPTH + 1).collect();
        std::fs::create_dir_all(from.join(deep)).unwrap();
        check("deep", 1000, 1000, Some(io::ErrorKind::InvalidFilename));
        let to = dir.path().join("unwanted");
        std::fs::create_dir(&to).unwrap();
        let mut allowance = Allowance { bytes: 1000, entries: 1000, cancelled: &|| true };
        assert!(duplicate(open(&from), open(&to), &mut allowance).is_err());
    }
}

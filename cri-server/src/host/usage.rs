//! How much of a file system a directory tree takes. What is in the tree is a container's, and hostile.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

/// Deeper directories are not looked into: each level holds a descriptor.
const MAX_DEPTH: usize = 128;
const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// What a directory tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirUsage {
    /// Bytes of the blocks in use; a file with several names counts once.
    pub bytes: u64,
    /// Inodes, the top directory included.
    pub inodes: u64,
    /// Whether everything was looked at: false beyond the entry limit and 128 levels.
    pub complete: bool,
}

/// How long what was found is taken for the present.
const FRESH: Duration = Duration::from_secs(30);
/// A walk may take one of so many parts of the time: what takes long is looked at less often.
const SHARE: u32 = 100;

/// What a directory tree took when it was last walked.
#[derive(Debug, Default)]
pub struct KnownUsage {
    last: Mutex<Option<Look>>,
}

/// One walk.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// What it found.
    pub usage: DirUsage,
    /// When it ended.
    pub at: SystemTime,
    ended: Instant,
    took: Duration,
}

impl KnownUsage {
    /// What the last walk found, as long as there was one.
    pub fn last(&self) -> Option<Look> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time for a walk.
    pub fn is_stale(&self) -> bool {
        self.last().is_none_or(|look| look.ended.elapsed() > FRESH.max(look.took * SHARE))
    }

    /// Walks the tree as [`dir_usage`] does, and keeps what it found. Blocks.
    pub fn walk(&self, path: &Path, max_entries: u64) -> io::Result<Look> {
        look(path, max_entries).inspect(|look| self.keep(*look))
    }

    /// Walks a tree that has no more than so many entries, and keeps what it found; `None` where it has more. Blocks.
    pub fn glance(&self, path: &Path, max_entries: u64) -> io::Result<Option<Look>> {
        let look = look(path, max_entries)?;
        Ok(look.usage.complete.then(|| {
            self.keep(look);
            look
        }))
    }

    fn keep(&self, look: Look) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
    }
}

fn look(path: &Path, max_entries: u64) -> io::Result<Look> {
    let start = Instant::now();
    let usage = dir_usage(path, max_entries)?;
    Ok(Look { usage, at: SystemTime::now(), ended: Instant::now(), took: start.elapsed() })
}

/// Walks the tree at `path`, at most `max_entries` entries of it, without following links or entering other file
/// systems. What changes or vanishes meanwhile is counted or not. Blocks: some microseconds an entry.
pub fn dir_usage(path: &Path, max_entries: u64) -> io::Result<DirUsage> {
    let top = rustix::fs::openat(CWD, path, DIRECTORY | OFlags::RDONLY, Mode::empty())?;
    let stat = rustix::fs::fstat(&top)?;
    let mut walk = Walk { device: stat.st_dev, seen: HashSet::new(), usage: DirUsage::default() };
    walk.usage.complete = true;
    walk.count(&stat);
    let mut stack = vec![Dir::new(top)?];
    while let Some(dir) = stack.last_mut() {
        match dir.next() {
            None => drop(stack.pop()),
            Some(_) if walk.usage.inodes > max_entries => {
                walk.usage.complete = false;
                break;
            }
            Some(entry) => {
                let entry = entry?;
                let depth = stack.len();
                let Some(parent) = stack.last() else { break };
                if let Some(child) = walk.visit(parent.fd()?, entry.file_name(), depth)? {
                    stack.push(Dir::new(child)?);
                }
            }
        }
    }
    Ok(walk.usage)
}

struct Walk {
    device: u64,
    /// Inodes with several names that were counted.
    seen: HashSet<u64>,
    usage: DirUsage,
}

impl Walk {
    /// Counts one entry; a directory to go on with is returned open.
    fn visit(
        &mut self,
        parent: impl AsFd,
        name: &std::ffi::CStr,
        depth: usize,
    ) -> io::Result<Option<OwnedFd>> {
        if name == c"." || name == c".." {
            return Ok(None);
        }
        let Ok(stat) = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(None) };
        if stat.st_dev != self.device || !self.count(&stat) {
            return Ok(None);
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(None);
        }
        if depth >= MAX_DEPTH {
            self.usage.complete = false;
            return Ok(None);
        }
        match rustix::fs::openat(&parent, name, DIRECTORY | OFlags::RDONLY, Mode::empty()) {
            // Replaced by something else since, or by a mount.
            Ok(child) => {
                Ok(rustix::fs::fstat(&child).ok().filter(|s| s.st_dev == self.device).map(|_| child))
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the inode is new.
    fn count(&mut self, stat: &Stat) -> bool {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_directory && stat.st_nlink > 1 && !self.seen.insert(stat.st_ino) {
            return false;
        }
        self.usage.inodes += 1;
        self.usage.bytes = self.usage.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_without_leaving_it() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        std::fs::write(tree.join("a/file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(tree.join("a/file"), tree.join("a/b/same")).unwrap();
        std::os::unix::fs::symlink("/", tree.join("a/root")).unwrap();
        std::os::unix::fs::symlink("../outside", tree.join("up")).unwrap();
        rustix::fs::mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let usage = dir_usage(&tree, 1000).unwrap();
        assert_eq!((usage.inodes, usage.complete), (7, true));
        assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
        assert!(!dir_usage(&tree, 3).unwrap().complete);
        assert!(dir_usage(&tree.join("up"), 10).is_err());
        assert!(dir_usage(&tree.join("absent"), 10).is_err());
    }

    #[test]
    fn what_is_known_becomes_stale() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownUsage::default();
        assert!(known.last().is_none() && known.is_stale());
        assert!(known.walk(&dir.path().join("absent"), 10).is_err() && known.is_stale());
        assert!(known.glance(dir.path(), 0).unwrap().is_none() && known.is_stale());
        assert_eq!(known.glance(dir.path(), 10).unwrap().unwrap().usage.inodes, 1);
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert_eq!((known.last().unwrap().usage.inodes, known.is_stale()), (1, false));
        assert_eq!(known.walk(dir.path(), 10).unwrap().usage.inodes, 2);
        let check = |ago: u32, took: u64, expect: bool| {
            let second = Duration::from_secs(1);
            let Some(ended) = Instant::now().checked_sub(second * ago) else { return };
            let took = Duration::from_millis(took);
            let last = known.last().unwrap();
            *known.last.lock().unwrap() = Some(Look { ended, took, ..last });
            assert_eq!(known.is_stale(), expect, "{ago} s ago, took {took:?}");
        };
        check(20, 0, false);
        check(31, 0, true);
        check(31, 1000, false);
        check(120, 1000, true);
    }

    #[test]
    fn depth_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("d/".repeat(200))).unwrap();
        let usage = dir_usage(dir.path(), 1000).unwrap();
        assert_eq!((usage.inodes, usage.complete), (129, false));
    }
}

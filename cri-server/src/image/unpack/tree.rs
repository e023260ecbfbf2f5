//! Directories of a layer that is being unpacked, found as a process with this root would find them.
//!
//! Every step goes through a descriptor and stays in the root (`openat2`, RESOLVE_IN_ROOT). A directory that entries
//! go into but that was never listed is made on the way and remembered: the layers below decide what it really is.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::{is_opaque, set_opaque};
use crate::host::fs::open_in_root;

/// Deepest directory of a layer: whatever walks a layer holds a descriptor per level.
const MAX_DEPTH: u32 = 250;
/// Symbolic links followed in one path, as the kernel has it.
const MAX_LINKS: u32 = 40;
const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open directory of a layer.
#[derive(Clone)]
pub struct Directory {
    fd: Rc<OwnedFd>,
    inode: u64,
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    /// Its inode number, which identifies it within the layer.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn new(fd: OwnedFd) -> io::Result<Self> {
        let inode = rustix::fs::fstat(&fd)?.st_ino;
        Ok(Self { fd: Rc::new(fd), inode })
    }
}

/// A layer's root directory and what is known about the directories below it.
pub struct Tree {
    root: Directory,
    last: Option<(PathBuf, Directory)>,
    depths: HashMap<u64, u32>,
    implied: HashMap<u64, PathBuf>,
}

impl Tree {
    /// Opens the root directory of a layer.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = Directory::new(rustix::fs::open(path, OPEN_DIRECTORY, Mode::empty())?)?;
        let depths = HashMap::from([(root.inode, 0)]);
        Ok(Self { root, last: None, depths, implied: HashMap::new() })
    }

    /// The root.
    pub fn root(&self) -> &Directory {
        &self.root
    }

    /// The directory at `path`, which has only normal components; makes what is missing.
    pub fn directory(&mut self, path: &Path) -> io::Result<Directory> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.clone());
        }
        if let Some((last, directory)) = &self.last
            && last == path
        {
            return Ok(directory.clone());
        }
        let directory = match self.existing(path) {
            Ok(directory) => directory,
            Err(error) if is_missing(&error) => self.make_all(path)?,
            Err(error) => return Err(error),
        };
        self.last = Some((path.to_path_buf(), directory.clone()));
        Ok(directory)
    }

    /// The directory at `path` if it is there.
    pub fn existing(&self, path: &Path) -> io::Result<Directory> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.clone());
        }
        Directory::new(open_in_root(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)?)
    }

    /// Makes the directory `name`, or takes the one that is there; anything else of that name goes.
    /// One that follows its own whiteout hides what lower layers have.
    pub fn make_directory(&mut self, parent: &Directory, name: &OsStr) -> io::Result<Directory> {
        let found = stat_at(parent, name)?;
        let whiteout = found.as_ref().is_some_and(is_whiteout);
        if found.is_some_and(|stat| !is_directory(&stat)) {
            self.last = None;
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        }
        let depth = self.depths.get(&parent.inode).copied().unwrap_or_default() + 1;
        if depth > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG.into());
        }
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let made = Directory::new(rustix::fs::openat(parent, name, OPEN_DIRECTORY, Mode::empty())?)?;
        if whiteout {
            set_opaque(&made)?;
        }
        self.depths.insert(made.inode, depth);
        Ok(made)
    }

    /// Removes `name` with everything in it.
    pub fn remove(&mut self, parent: &Directory, name: &OsStr) -> io::Result<()> {
        self.last = None;
        remove_at(parent, name)
    }

    /// Tells that directories were moved by others.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Tells that a layer lists the directory, or that it needs nothing from below.
    pub fn listed(&mut self, directory: &Directory) {
        self.implied.remove(&directory.inode);
    }

    /// Number of directories that were made on the way.
    pub fn implied_count(&self) -> usize {
        self.implied.len()
    }

    /// Takes the paths of those that are still there, as they are in the layer.
    pub fn take_implied(&mut self) -> Vec<PathBuf> {
        let implied = std::mem::take(&mut self.implied);
        let mut paths: Vec<_> = implied
            .into_iter()
            .filter(|(inode, path)| self.existing(path).is_ok_and(|found| found.inode == *inode))
            .map(|(_, path)| path)
            .collect();
        paths.sort();
        paths
    }

    /// Path of a directory without links, as the layer has it.
    pub fn real_path(&self, directory: &Directory) -> io::Result<PathBuf> {
        let name =
            |directory: &Directory| std::fs::read_link(format!("/proc/self/fd/{}", directory.fd.as_raw_fd()));
        let (root, path) = (name(&self.root)?, name(directory)?);
        path.strip_prefix(root).map(Path::to_path_buf).map_err(|_| Errno::NOENT.into())
    }

    /// Whether the directory at a real path, or one above it, hides what lower layers have there.
    pub fn is_hidden_below(&self, path: &Path) -> io::Result<bool> {
        for above in path.ancestors() {
            if is_opaque(self.existing(above)?)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Walks step by step; a link into the void makes its target, inside the root.
    fn make_all(&mut self, path: &Path) -> io::Result<Directory> {
        let mut todo: Vec<OsString> = components(path.as_os_str().as_bytes());
        todo.reverse();
        let (mut at, mut here, mut links) = (self.root.clone(), PathBuf::new(), 0);
        while let Some(name) = todo.pop() {
            if name == ".." {
                here.pop();
                at = self.existing(&here)?;
                continue;
            }
            match stat_at(&at, &name)? {
                Some(stat) if is_symlink(&stat) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&at, &name, Vec::new())?.into_bytes();
                    if target.starts_with(b"/") {
                        (at, here) = (self.root.clone(), PathBuf::new());
                    }
                    todo.extend(components(&target).into_iter().rev());
                    continue;
                }
                Some(stat) if is_directory(&stat) => {
                    at = Directory::new(rustix::fs::openat(&at, &name, OPEN_DIRECTORY, Mode::empty())?)?;
                }
                Some(stat) if !is_whiteout(&stat) => return Err(Errno::NOTDIR.into()),
                found => {
                    let made = self.make_directory(&at, &name)?;
                    if found.is_none() {
                        self.implied.insert(made.inode, here.join(&name));
                    }
                    at = made;
                }
            }
            here.push(&name);
        }
        Ok(at)
    }
}

/// The components of a path, without empty ones and `.`; `..` is kept.
pub fn components(path: &[u8]) -> Vec<OsString> {
    let parts = path.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| OsString::from_vec(part.to_vec())).collect()
}

/// A name of an archive as a path below the root: `..` stays inside.
pub fn clean(name: &[u8]) -> PathBuf {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => drop(path.pop()),
            _ => {}
        }
    }
    path
}

/// Metadata of `name`, not following a link; `None` when nothing is there.
pub fn stat_at(parent: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes `name` with everything in it; a link is removed, not followed.
pub fn remove_at(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        other => return Ok(other?),
    }
    let directory = rustix::fs::openat(&parent, name, OPEN_DIRECTORY, Mode::empty())?;
    for child in children(&directory)? {
        remove_at(&directory, &child)?;
    }
    Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
}

/// The names in a directory, sorted.
pub fn children(directory: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

/// Whether overlayfs takes it for a deletion.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether it is a directory.
pub fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether it is a symbolic link.
pub fn is_symlink(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
}

/// Whether an error says that nothing usable is at the path.
pub fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

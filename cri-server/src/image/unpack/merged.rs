//! Looks through a stack of layer directories as overlayfs would show them, without mounting: whiteouts and opaque
//! directories hide, symbolic links are resolved inside the stack. Read-only.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::attributes::is_opaque;
use super::tree::{components, is_directory, is_missing, is_symlink, is_whiteout};

const MAX_LINKS: u32 = 40;

/// Layer directories, topmost first.
pub struct Merged<'a>(Vec<&'a OwnedFd>);

/// A directory of the stack: its real path, and the layers that have a part of it, topmost first.
#[derive(Debug, Clone)]
pub struct Place {
    /// Path without links.
    pub path: PathBuf,
    layers: Vec<usize>,
}

impl Place {
    /// Whether no layer has it: the root of a stack without layers.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

/// What the stack shows under a name.
#[derive(Debug)]
pub enum Found {
    /// Nothing, or a deletion.
    Missing,
    /// A directory.
    Directory(Place),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Anything else.
    Other,
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Resolved {
    /// To a directory with this real path, all or part of which may not exist yet.
    Directory(PathBuf),
    /// Through something that is not a directory.
    Blocked,
}

impl<'a> Merged<'a> {
    /// A stack of layers, topmost first. One whose root directory is opaque is the last that is seen.
    pub fn new(layers: impl IntoIterator<Item = &'a OwnedFd>) -> io::Result<Self> {
        let mut stack = Self(Vec::new());
        for layer in layers {
            stack.0.push(layer);
            if is_opaque(stack.reopen(stack.0.len() - 1, Path::new(""))?)? {
                break;
            }
        }
        Ok(stack)
    }

    /// The root directory.
    pub fn root(&self) -> Place {
        Place { path: PathBuf::new(), layers: (0..self.0.len()).collect() }
    }

    /// What is under `name` in a directory.
    pub fn look(&self, directory: &Place, name: &OsStr) -> io::Result<Found> {
        let path = directory.path.join(name);
        let mut parts = Vec::new();
        for &layer in &directory.layers {
            let Some(fd) = self.open(layer, &path, OFlags::PATH)? else { continue };
            let stat = rustix::fs::fstat(&fd)?;
            if is_directory(&stat) {
                parts.push(layer);
                if is_opaque(self.reopen(layer, &path)?)? {
                    break;
                }
                continue;
            }
            if parts.is_empty() && !is_whiteout(&stat) {
                return match is_symlink(&stat) {
                    true => Ok(Found::Symlink(rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes())),
                    false => Ok(Found::Other),
                };
            }
            break;
        }
        Ok(if parts.is_empty() { Found::Missing } else { Found::Directory(Place { path, layers: parts }) })
    }

    /// Opens the topmost part of a directory; none if no layer has it.
    pub fn top(&self, directory: &Place) -> io::Result<Option<OwnedFd>> {
        directory.layers.first().map(|&layer| self.reopen(layer, &directory.path)).transpose()
    }

    /// Opens what the stack shows under `name`, without following it.
    pub fn open_shown(&self, directory: &Place, name: &OsStr) -> io::Result<Option<OwnedFd>> {
        let path = directory.path.join(name);
        for &layer in &directory.layers {
            if let Some(fd) = self.open(layer, &path, OFlags::PATH)? {
                return Ok((!is_whiteout(&rustix::fs::fstat(&fd)?)).then_some(fd));
            }
        }
        Ok(None)
    }

    /// The directory at a real path, none if the stack has no directory there.
    pub fn place(&self, path: &Path) -> io::Result<Option<Place>> {
        let mut at = self.root();
        for name in path.iter() {
            match self.look(&at, name)? {
                Found::Directory(next) => at = next,
                _ => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Follows `path` from the directory `from`, inside the stack, links and all.
    pub fn resolve(&self, from: &Path, path: &[u8]) -> io::Result<Resolved> {
        let start = if path.starts_with(b"/") { Path::new("") } else { from };
        let mut todo: Vec<OsString> =
            components(start.as_os_str().as_bytes()).into_iter().chain(components(path)).rev().collect();
        let (mut here, mut links) = (vec![Some(self.root())], 0);
        let mut names: Vec<OsString> = Vec::new();
        while let Some(name) = todo.pop() {
            if name == ".." {
                names.pop();
                here.truncate(here.len().saturating_sub(1).max(1));
                continue;
            }
            let found = match here.last() {
                Some(Some(place)) => self.look(place, &name)?,
                _ => Found::Missing,
            };
            match found {
                Found::Directory(place) => here.push(Some(place)),
                Found::Missing => here.push(None),
                Found::Other => return Ok(Resolved::Blocked),
                Found::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.starts_with(b"/") {
                        names.clear();
                        here.truncate(1);
                    }
                    todo.extend(components(&target).into_iter().rev());
                    continue;
                }
            }
            names.push(name);
        }
        Ok(Resolved::Directory(names.iter().collect()))
    }

    fn open(&self, layer: usize, path: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match rustix::fs::openat2(self.0[layer].as_fd(), path, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if is_missing(&error.into()) || error == Errno::LOOP => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn reopen(&self, layer: usize, path: &Path) -> io::Result<OwnedFd> {
        let found = self.open(layer, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        found.ok_or_else(|| Errno::NOENT.into())
    }
}

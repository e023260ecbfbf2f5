//! Fits a layer that was unpacked alone to the layers below it.
//!
//! Alone, a layer cannot know what a directory is that it puts files in without listing it, nor what a hard link to a
//! lower layer's file leads to. Seen over its parents:
//! - such a directory takes mode, owner and attributes from the nearest lower layer that has it;
//! - where the lower layers have a symbolic link instead, the files belong behind the link, and the directory goes;
//! - the target of such a hard link is copied up, and both names are one file, as if the link had been made in a
//!   container.
//!
//! [`needs_graft`] tells whether any of that changes the directory. If not, the layer is shared as it is.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::{Attributes, is_opaque, set_opaque};
use super::copy::copy_opened;
use super::extract::{Needs, PendingLink};
use super::merged::{Found, Merged, Resolved};
use super::tree::{Tree, children, is_directory, is_whiteout, remove_at, stat_at};
use crate::image::error::ImageError;

const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Directories that may lie behind links of links.
const MAX_MOVES: usize = 10_000;

/// What the layers below say about a directory that the layer does not list.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing, or what it has already.
    Default,
    /// It is theirs, with these attributes.
    Inherit(Attributes),
    /// It is a symbolic link there.
    Behind(Vec<u8>),
}

/// Whether `layer`, over `lower` (topmost first), must differ from what it is alone.
pub fn needs_graft(layer: &Path, lower: &[OwnedFd], needs: &Needs) -> Result<bool, ImageError> {
    let fail = |e| ImageError::io("comparing a layer with its parents", e);
    if !needs.links.is_empty() {
        return Ok(true);
    }
    let tree = Tree::open(layer).map_err(fail)?;
    let lower = Merged(lower.iter().collect());
    for path in &needs.implied {
        if verdict(&tree, &lower, path).map_err(fail)? != Verdict::Default {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Changes `layer`, a copy of a layer as it was unpacked, to what it is over `lower` (topmost first).
pub fn graft(layer: &Path, lower: &[OwnedFd], needs: &Needs) -> Result<(), ImageError> {
    let fail = |e| ImageError::io("fitting a layer to its parents", e);
    let root = rustix::fs::open(layer, OPEN_DIRECTORY, Mode::empty()).map_err(|e| fail(e.into()))?;
    let mut graft = Graft {
        tree: Tree::open(layer).map_err(fail)?,
        lower: Merged(lower.iter().collect()),
        all: Merged(std::iter::once(&root).chain(lower).collect()),
        todo: needs.implied.iter().cloned().collect(),
        moves: 0,
    };
    graft.directories()?;
    for link in &needs.links {
        graft.link(link)?;
    }
    graft.directories()
}

fn verdict(tree: &Tree, lower: &Merged, path: &Path) -> io::Result<Verdict> {
    let mut at = lower.root();
    let mut above = PathBuf::new();
    for name in path.iter() {
        if is_opaque(tree.existing(&above)?)? {
            return Ok(Verdict::Default);
        }
        above.push(name);
        match lower.look(&at, name)? {
            Found::Directory(next) => at = next,
            Found::Symlink(target) if above == path => return Ok(Verdict::Behind(target)),
            // A listed directory of this layer hides whatever else is there.
            _ => return Ok(Verdict::Default),
        }
    }
    let Some(top) = lower.top(&at)? else { return Ok(Verdict::Default) };
    let attributes = Attributes::of(top)?;
    Ok(if attributes.are_default() { Verdict::Default } else { Verdict::Inherit(attributes) })
}

struct Graft<'a> {
    tree: Tree,
    lower: Merged<'a>,
    all: Merged<'a>,
    /// Directories to look at, parents before what is in them.
    todo: BTreeSet<PathBuf>,
    moves: usize,
}

impl Graft<'_> {
    fn directories(&mut self) -> Result<(), ImageError> {
        while let Some(path) = self.todo.pop_first() {
            let fail = |e| failed(&path, e);
            match verdict(&self.tree, &self.lower, &path).map_err(fail)? {
                Verdict::Default => {}
                Verdict::Inherit(attributes) => {
                    let directory = self.tree.existing(&path).map_err(fail)?;
                    attributes
                        .apply(&directory)
                        .and_then(|()| attributes.apply_times(&directory))
                        .map_err(fail)?;
                }
                Verdict::Behind(target) => self.move_behind(&path, &target)?,
            }
        }
        Ok(())
    }

    /// The layer's directory `path` is a link to `target` in the layers below: its content goes there.
    fn move_behind(&mut self, path: &Path, target: &[u8]) -> Result<(), ImageError> {
        let fail = |e| failed(path, e);
        self.moves += 1;
        let parent = path.parent().unwrap_or(Path::new(""));
        let real = match self.all.resolve(parent, target).map_err(fail)? {
            Resolved::Directory(real) if !real.starts_with(path) && self.moves <= MAX_MOVES => real,
            _ => {
                let what = format!("{:?} is a link that leads to no directory", path.display().to_string());
                return Err(ImageError::invalid(what));
            }
        };
        let to = self.make(&real).map_err(fail)?;
        let from = self.tree.existing(path).map_err(fail)?;
        merge(&from, &to).map_err(fail)?;
        let parent = self.tree.existing(parent).map_err(fail)?;
        self.tree.remove(&parent, path.file_name().unwrap_or_default()).map_err(fail)?;
        let inside: Vec<_> = self.todo.iter().filter(|other| other.starts_with(path)).cloned().collect();
        for other in inside {
            self.todo.remove(&other);
            if let Ok(rest) = other.strip_prefix(path) {
                self.todo.insert(real.join(rest));
            }
        }
        Ok(())
    }

    /// The directory at a real path of this layer; those made for it take their attributes from below, too.
    fn make(&mut self, path: &Path) -> io::Result<super::tree::Directory> {
        let directory = self.tree.directory(path)?;
        self.todo.extend(self.tree.take_implied());
        Ok(directory)
    }

    fn link(&mut self, link: &PendingLink) -> Result<(), ImageError> {
        let fail = |e| failed(&link.path, e);
        let missing = || {
            let (path, target) = (link.path.display().to_string(), link.target.display().to_string());
            ImageError::invalid(format!("{path:?} is a hard link to {target:?}, which is no file"))
        };
        let (target_parent, target_name) = self.real(&link.target)?.ok_or_else(missing)?;
        let (parent, name) = self.real(&link.path)?.ok_or_else(missing)?;
        let here = self.tree.existing(&target_parent).ok();
        let own = match &here {
            Some(here) => stat_at(here, &target_name).map_err(fail)?,
            None => None,
        };
        let into = self.make(&parent).map_err(fail)?;
        match own {
            Some(stat) if is_directory(&stat) => return Err(missing()),
            Some(stat) if !is_whiteout(&stat) => {
                let from = here.ok_or_else(missing)?;
                self.tree.remove(&into, &name).map_err(fail)?;
                rustix::fs::linkat(&from, &target_name, &into, &name, AtFlags::empty())
                    .map_err(|e| fail(e.into()))
            }
            own => {
                let place = self.lower.place(&target_parent).map_err(fail)?.ok_or_else(missing)?;
                let source =
                    self.lower.open_shown(&place, &target_name).map_err(fail)?.ok_or_else(missing)?;
                if is_directory(&rustix::fs::fstat(&source).map_err(|e| fail(e.into()))?) {
                    return Err(missing());
                }
                self.tree.remove(&into, &name).map_err(fail)?;
                copy_opened(source, &into, &name).map_err(fail)?;
                // The old name, unless the layer deletes it, becomes another name of the copy.
                if own.is_none() && (&target_parent, &target_name) != (&parent, &name) {
                    let beside = self.make(&target_parent).map_err(fail)?;
                    rustix::fs::linkat(&into, &name, &beside, &target_name, AtFlags::empty())
                        .map_err(|e| fail(e.into()))?;
                }
                Ok(())
            }
        }
    }

    /// The real directory and the name that `path` leads to; the last component is not followed.
    fn real(&self, path: &Path) -> Result<Option<(PathBuf, std::ffi::OsString)>, ImageError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let Some(name) = path.file_name() else { return Ok(None) };
        let resolved = self.all.resolve(Path::new(""), parent.as_os_str().as_bytes());
        Ok(match resolved.map_err(|e| failed(path, e))? {
            Resolved::Directory(parent) => Some((parent, name.to_os_string())),
            Resolved::Blocked => None,
        })
    }
}

/// Moves everything from one directory into another; a file wins over a deletion, else what is moved wins.
fn merge(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd) -> io::Result<()> {
    if is_opaque(&from)? {
        set_opaque(&to)?;
    }
    for name in children(&from)? {
        let Some(moved) = stat_at(&from, &name)? else { continue };
        match stat_at(&to, &name)? {
            None => {}
            Some(there) if is_directory(&there) && is_directory(&moved) => {
                let source = rustix::fs::openat(&from, &name, OPEN_DIRECTORY, Mode::empty())?;
                let target = rustix::fs::openat(&to, &name, OPEN_DIRECTORY, Mode::empty())?;
                merge(&source, &target)?;
                remove_at(&from, &name)?;
                continue;
            }
            Some(there) if is_whiteout(&moved) && !is_whiteout(&there) => {
                remove_at(&from, &name)?;
                continue;
            }
            Some(_) => remove_at(&to, &name)?,
        }
        rustix::fs::renameat(&from, &name, &to, &name)?;
    }
    Ok(())
}

fn failed(path: &Path, error: io::Error) -> ImageError {
    let shown: String = path.display().to_string().chars().take(200).collect();
    match Errno::from_io_error(&error) {
        Some(Errno::LOOP | Errno::NAMETOOLONG | Errno::NOTDIR | Errno::MLINK) => {
            ImageError::corrupt(format!("{shown:?} does not fit the layers below"), error)
        }
        _ => ImageError::io(format!("fitting {shown:?} to the layers below"), error),
    }
}

#[cfg(test)]
#[path = "graft_tests.rs"]
mod tests;

//! Fits a layer that was unpacked alone to the layers below it.
//!
//! Alone, a layer cannot know what a directory is that it puts files in without listing it, nor what a hard link to a
//! lower layer's file leads to. Seen over its parents:
//! - such a directory takes mode, owner and attributes from the nearest lower layer that has it;
//! - where the lower layers have a symbolic link instead, the files belong behind the link, and the directory goes;
//! - the target of such a hard link is copied up, and both names are one file, as if the link had been made in a
//!   container;
//! - whiteouts in a directory that the lower layers do not have go, since overlayfs would show them.
//!
//! [`needs_graft`] tells whether any of that changes the directory. If not, the layer is shared as it is.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::attributes::{Attributes, is_opaque, set_opaque};
use super::copy::copy_opened;
use super::extract::{Needs, PendingLink, prune_whiteouts};
use super::merged::{Found, Merged, Resolved};
use super::tree::{Tree, children, is_directory, is_symlink, is_whiteout, remove_at, stat_at};
use crate::image::error::ImageError;

const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Name of a directory that is being moved; nothing of an image begins so, since it would be a deletion.
const ASIDE: &str = ".wh..moving";
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
    let lower = Merged::new(lower).map_err(fail)?;
    for path in &needs.implied {
        if verdict(&tree, &lower, path).map_err(fail)? != Verdict::Default {
            return Ok(true);
        }
    }
    for path in &needs.whiteouts {
        if !has_lower(&tree, &lower, path).map_err(fail)? {
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
        lower: Merged::new(lower).map_err(fail)?,
        all: Merged::new(std::iter::once(&root).chain(lower)).map_err(fail)?,
        todo: needs.implied.iter().cloned().collect(),
        implied: needs.implied.iter().cloned().collect(),
        whiteouts: needs.whiteouts.iter().cloned().collect(),
        linked: BTreeSet::new(),
        moves: 0,
    };
    graft.directories()?;
    for link in &needs.links {
        graft.link(link)?;
    }
    graft.directories()?;
    graft.prune().map_err(fail)
}

/// Whether lower layers have the directory at a real path, so that overlayfs merges it.
fn has_lower(tree: &Tree, lower: &Merged, path: &Path) -> io::Result<bool> {
    Ok(!tree.is_hidden_below(path)? && lower.place(path)?.is_some_and(|place| !place.is_empty()))
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
    /// All directories that the layer does not list.
    implied: BTreeSet<PathBuf>,
    /// Directories that hold whiteouts.
    whiteouts: BTreeSet<PathBuf>,
    /// Files that hard links made or were made to.
    linked: BTreeSet<PathBuf>,
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
        let from = self.take_aside(parent, path.file_name().unwrap_or_default()).map_err(fail)?;
        let real = match self.all.resolve(parent, target).map_err(fail)? {
            Resolved::Directory(real) if self.moves <= MAX_MOVES => real,
            _ => {
                let what = format!("{:?} is a link that leads to no directory", path.display().to_string());
                return Err(ImageError::invalid(what));
            }
        };
        let to = self.make(&real).map_err(fail)?;
        self.implied.remove(path);
        self.merge((&from, path), (to.fd(), &real)).map_err(fail)?;
        remove_at(self.tree.root(), OsStr::new(ASIDE)).map_err(fail)?;
        self.renamed(path, &real);
        Ok(())
    }

    /// Takes a directory out of the tree, so that the link shows that is to be followed.
    fn take_aside(&mut self, parent: &Path, name: &OsStr) -> io::Result<OwnedFd> {
        let (root, parent) = (self.tree.root().clone(), self.tree.existing(parent)?);
        rustix::fs::renameat_with(&parent, name, &root, ASIDE, RenameFlags::NOREPLACE)?;
        self.tree.forget();
        Ok(rustix::fs::openat(&root, ASIDE, OPEN_DIRECTORY, Mode::empty())?)
    }

    /// Moves everything from one directory into another.
    fn merge(&mut self, from: (&OwnedFd, &Path), to: (&OwnedFd, &Path)) -> io::Result<()> {
        if is_opaque(from.0)? {
            set_opaque(to.0)?;
        }
        for name in children(from.0)? {
            self.merge_child(from, to, &name)?;
        }
        Ok(())
    }

    /// What is moved wins over what is there, but deletions mean lower layers only.
    fn merge_child(
        &mut self,
        from: (&OwnedFd, &Path),
        to: (&OwnedFd, &Path),
        name: &OsStr,
    ) -> io::Result<()> {
        let Some(moved) = stat_at(from.0, name)? else { return Ok(()) };
        let there = stat_at(to.0, name)?;
        match &there {
            Some(there) if is_directory(there) && is_directory(&moved) => {
                self.merge_directories(from, to, name)?;
                return remove_at(from.0, name);
            }
            Some(there) if is_symlink(there) && self.implied.contains(&from.1.join(name)) => {
                self.merge_behind(from, to, name)?;
                return remove_at(from.0, name);
            }
            Some(there) if is_whiteout(&moved) && !is_whiteout(there) => {
                if is_directory(there) {
                    self.hide_lower(to, name)?;
                }
                return remove_at(from.0, name);
            }
            Some(_) => remove_at(to.0, name)?,
            None => {}
        }
        rustix::fs::renameat(from.0, name, to.0, name)?;
        if there.as_ref().is_some_and(is_whiteout) && is_directory(&moved) {
            self.hide_lower(to, name)?;
            self.forget_implied(&from.1.join(name));
        }
        Ok(())
    }

    /// A directory beside its own deletion.
    fn hide_lower(&mut self, parent: (&OwnedFd, &Path), name: &OsStr) -> io::Result<()> {
        self.forget_implied(&parent.1.join(name));
        set_opaque(rustix::fs::openat(parent.0, name, OPEN_DIRECTORY, Mode::empty())?)
    }

    fn forget_implied(&mut self, path: &Path) {
        self.implied.remove(path);
        self.todo.remove(path);
    }

    /// Two directories of one name become one: what the layer lists of either counts.
    fn merge_directories(
        &mut self,
        from: (&OwnedFd, &Path),
        to: (&OwnedFd, &Path),
        name: &OsStr,
    ) -> io::Result<()> {
        let open = |at: &OwnedFd| rustix::fs::openat(at, name, OPEN_DIRECTORY, Mode::empty());
        let (source, target) = (open(from.0)?, open(to.0)?);
        let (source_path, target_path) = (from.1.join(name), to.1.join(name));
        self.todo.remove(&source_path);
        if !self.implied.remove(&source_path) {
            let attributes = Attributes::of(&source)?;
            attributes.apply(&target)?;
            attributes.apply_times(&target)?;
            self.implied.remove(&target_path);
            self.todo.remove(&target_path);
        }
        self.merge((&source, &source_path), (&target, &target_path))
    }

    /// A directory that the layer does not list meets a link that it does list.
    fn merge_behind(
        &mut self,
        from: (&OwnedFd, &Path),
        to: (&OwnedFd, &Path),
        name: &OsStr,
    ) -> io::Result<()> {
        self.moves += 1;
        let target = rustix::fs::readlinkat(to.0, name, Vec::new())?.into_bytes();
        let real = match self.all.resolve(to.1, &target)? {
            Resolved::Directory(real) if self.moves <= MAX_MOVES => real,
            _ => return Err(Errno::NOTDIR.into()),
        };
        let (source_path, behind) = (from.1.join(name), self.make(&real)?);
        let source = rustix::fs::openat(from.0, name, OPEN_DIRECTORY, Mode::empty())?;
        self.implied.remove(&source_path);
        self.merge((&source, &source_path), (behind.fd(), &real))?;
        self.renamed(&source_path, &real);
        Ok(())
    }

    fn renamed(&mut self, from: &Path, to: &Path) {
        self.todo.remove(from);
        for paths in [&mut self.todo, &mut self.implied, &mut self.whiteouts] {
            rename_below(paths, from, to);
        }
    }

    fn prune(&self) -> io::Result<()> {
        for path in &self.whiteouts {
            if !has_lower(&self.tree, &self.lower, path)? {
                prune_whiteouts(&self.tree.existing(path)?)?;
            }
        }
        Ok(())
    }

    /// The directory at a real path of this layer; those made for it take their attributes from below, too.
    fn make(&mut self, path: &Path) -> io::Result<super::tree::Directory> {
        let directory = self.tree.directory(path)?;
        let made = self.tree.take_implied();
        self.todo.extend(made.iter().cloned());
        self.implied.extend(made);
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
        let into = self.make(&parent).map_err(fail)?;
        let real_target = target_parent.join(&target_name);
        if real_target == parent.join(&name) {
            return Ok(());
        }
        let here = self.tree.existing(&target_parent).ok();
        let own = match &here {
            Some(here) => stat_at(here, &target_name).map_err(fail)?,
            None => None,
        };
        // The layer had nothing under that very name when the link was read: what it has now came later.
        let meant = real_target != link.target || self.linked.contains(&real_target);
        let (from, copied) = match (own, here) {
            (Some(stat), Some(_)) if meant && is_directory(&stat) => return Err(missing()),
            (Some(stat), Some(here)) if meant && !is_whiteout(&stat) => (here, false),
            (own, _) => {
                let place = self.lower.place(&target_parent).map_err(fail)?.ok_or_else(missing)?;
                let source =
                    self.lower.open_shown(&place, &target_name).map_err(fail)?.ok_or_else(missing)?;
                if is_directory(&rustix::fs::fstat(&source).map_err(|e| fail(e.into()))?) {
                    return Err(missing());
                }
                self.tree.remove(&into, &name).map_err(fail)?;
                copy_opened(source, &into, &name).map_err(fail)?;
                self.linked.insert(parent.join(&name));
                if own.is_some() {
                    return Ok(());
                }
                // Unless the layer has another use for it, the old name becomes another name of the copy.
                (self.make(&target_parent).map_err(fail)?, true)
            }
        };
        let (old, new) = ((&from, &target_name), (&into, &name));
        let (existing, made) = if copied { (new, old) } else { (old, new) };
        self.tree.remove(made.0, made.1).map_err(fail)?;
        rustix::fs::linkat(existing.0, existing.1, made.0, made.1, AtFlags::empty())
            .map_err(|e| fail(e.into()))?;
        self.linked.extend([parent.join(&name), real_target]);
        Ok(())
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

fn rename_below(paths: &mut BTreeSet<PathBuf>, from: &Path, to: &Path) {
    let inside: Vec<_> = paths.iter().filter(|path| path.starts_with(from)).cloned().collect();
    for path in inside {
        paths.remove(&path);
        if let Ok(rest) = path.strip_prefix(from) {
            paths.insert(if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) });
        }
    }
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

//! Puts the entries of a layer's archive into the layer's directory. Knows no other layer: what depends on the
//! layers below is returned as [`Needs`].
//!
//! Deletions become what overlayfs understands: a whiteout is a character device 0/0, an opaque directory has an
//! attribute (OCI image specification, layer.md, "Whiteouts"). They apply to lower layers only: what the layer itself
//! holds stays.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::attributes::{Attributes, HasMode, is_allowed, set_opaque};
use super::limits::Limits;
use super::tar::{Entry, Kind, TarStream};
use super::tree::{Directory, Tree, children, clean, is_directory, is_missing, is_whiteout, stat_at};
use crate::image::error::ImageError;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that union file systems once used for their own purposes.
const RESERVED: &[u8] = b".wh..wh.";

/// What a layer leaves to the layers below it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Directories that the layer puts files in without listing them; the empty path is the root.
    #[serde(with = "super::stored::paths")]
    pub implied: Vec<PathBuf>,
    /// Hard links whose target is not in the layer.
    pub links: Vec<PendingLink>,
    /// Directories that hold whiteouts.
    #[serde(with = "super::stored::paths")]
    pub whiteouts: Vec<PathBuf>,
}

/// A hard link whose target is not in the layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingLink {
    /// The new name.
    #[serde(with = "super::stored::path")]
    pub path: PathBuf,
    /// The existing name.
    #[serde(with = "super::stored::path")]
    pub target: PathBuf,
}

/// What a layer takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of file contents, in whole blocks.
    pub bytes: u64,
    /// Files, directories and other nodes.
    pub inodes: u64,
}

/// Unpacks into one directory.
pub struct Extractor<'l> {
    tree: Tree,
    limits: &'l Limits,
    links: Vec<PendingLink>,
    times: Vec<(PathBuf, u64, Attributes)>,
    whiteouts: HashMap<u64, PathBuf>,
    root: Listed,
    entries: u64,
    usage: Usage,
}

#[derive(PartialEq, Eq)]
enum Listed {
    Yes,
    No,
}

impl<'l> Extractor<'l> {
    /// Unpacks into `directory`, which is empty.
    pub fn new(directory: &Path, limits: &'l Limits) -> Result<Self, ImageError> {
        let tree = Tree::open(directory).map_err(|e| ImageError::io("opening a layer's directory", e))?;
        let (links, times, whiteouts) = (Vec::new(), Vec::new(), HashMap::new());
        let usage = Usage { bytes: 0, inodes: 1 };
        Ok(Self { tree, limits, links, times, whiteouts, root: Listed::No, entries: 0, usage })
    }

    /// Unpacks a whole archive and gives its input back, read to the end.
    pub fn unpack<R: BufRead>(&mut self, mut stream: TarStream<'_, R>) -> Result<R, ImageError> {
        while let Some(mut entry) = stream.next_entry()? {
            entry.xattrs.retain(|(name, _)| is_allowed(name));
            self.entry(&entry, &mut stream)?;
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(ImageError::invalid(format!(
                    "a layer has more than {} entries",
                    self.limits.entries
                )));
            }
            let pending = self.tree.implied_count() + self.links.len() + self.whiteouts.len();
            if pending > self.limits.pending {
                return Err(ImageError::invalid(
                    "a layer has too many entries in directories it does not list",
                ));
            }
        }
        stream.finish()
    }

    /// Sets what had to wait for the last entry, and says what the layer needs from below.
    pub fn finish(mut self) -> Result<(Needs, Usage), ImageError> {
        for (path, inode, attributes) in std::mem::take(&mut self.times) {
            let found = self.tree.existing(&path).ok().filter(|directory| directory.inode() == inode);
            if let Some(directory) = found {
                attributes.apply_times(&directory).map_err(|e| failed(&path, e, &[]))?;
            }
        }
        let mut implied = self.tree.take_implied();
        if self.root == Listed::No {
            implied.insert(0, PathBuf::new());
        }
        let fail = |e| ImageError::io("looking at a layer's deletions", e);
        let mut whiteouts = Vec::new();
        for (inode, path) in &self.whiteouts {
            let found = self.tree.existing(path).ok().filter(|directory| directory.inode() == *inode);
            let Some(directory) = found else { continue };
            let real = self.tree.real_path(&directory).map_err(fail)?;
            if self.tree.is_hidden_below(&real).map_err(fail)? {
                prune_whiteouts(&directory).map_err(fail)?;
            } else {
                whiteouts.push(real);
            }
        }
        whiteouts.sort();
        whiteouts.dedup();
        Ok((Needs { implied, links: self.links, whiteouts }, self.usage))
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, stream: &mut TarStream<'_, R>) -> Result<(), ImageError> {
        let path = clean(&entry.path);
        let Some(name) = path.file_name().map(OsStr::to_os_string) else {
            return self.root_entry(entry);
        };
        let fail = |e| failed(&path, e, &entry.xattrs);
        let parent = self.tree.directory(path.parent().unwrap_or(Path::new(""))).map_err(fail)?;
        if name.as_bytes().starts_with(WHITEOUT) {
            let at = path.parent().unwrap_or(Path::new(""));
            return self.whiteout((at, &parent), &name).map_err(fail);
        }
        self.links.retain(|link| link.path != path);
        let place = Place { parent, name, path: &path };
        match &entry.kind {
            Kind::File(map) => return self.file(&place, entry, map.as_deref(), stream),
            Kind::Directory => self.directory(&place, entry),
            Kind::HardLink(target) => return self.hard_link(&place, target),
            Kind::Symlink(target) => self.symlink(&place, entry, target),
            Kind::Character(..) | Kind::Block(..) | Kind::Fifo => self.node(&place, entry),
        }
        .map_err(fail)
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), ImageError> {
        if entry.kind != Kind::Directory {
            return Err(ImageError::invalid("an entry replaces the root directory"));
        }
        self.root = Listed::Yes;
        let (root, attributes) = (self.tree.root().clone(), attributes(entry));
        attributes.apply(&root).map_err(|e| failed(Path::new("/"), e, &entry.xattrs))?;
        self.times.push((PathBuf::new(), root.inode(), attributes));
        Ok(())
    }

    fn whiteout(&mut self, (at, parent): (&Path, &Directory), name: &OsStr) -> io::Result<()> {
        if name.as_bytes() == OPAQUE {
            return set_opaque(parent);
        }
        let hidden = OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]);
        if name.as_bytes().starts_with(RESERVED) {
            return Ok(());
        }
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(Errno::INVAL.into());
        }
        match stat_at(parent, hidden)? {
            None => {
                self.usage.inodes += 1;
                self.whiteouts.entry(parent.inode()).or_insert_with(|| at.to_path_buf());
                Ok(rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)?)
            }
            Some(stat) if is_directory(&stat) => {
                let directory = self.tree.make_directory(parent, hidden)?;
                self.tree.listed(&directory);
                set_opaque(&directory)
            }
            Some(_) => Ok(()),
        }
    }

    fn directory(&mut self, place: &Place, entry: &Entry) -> io::Result<()> {
        let directory = self.tree.make_directory(&place.parent, &place.name)?;
        self.usage.inodes += 1;
        self.tree.listed(&directory);
        let attributes = attributes(entry);
        attributes.apply(&directory)?;
        self.times.push((place.path.to_path_buf(), directory.inode(), attributes));
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        place: &Place,
        entry: &Entry,
        map: Option<&[(u64, u64)]>,
        stream: &mut TarStream<'_, R>,
    ) -> Result<(), ImageError> {
        let fail = |e| failed(place.path, e, &entry.xattrs);
        let file = self.create(place).map_err(fail)?;
        self.usage.inodes += 1;
        self.usage.bytes += stream.left().next_multiple_of(4096);
        match map {
            None => write_all(&file, stream).map_err(|e| or_stream(e, fail))?,
            Some(map) => {
                write_sparse(&file, map, stream).map_err(|e| or_stream(e, fail))?;
                file.set_len(entry.size).map_err(fail)?;
            }
        }
        let attributes = attributes(entry);
        attributes.apply(&file).and_then(|()| attributes.apply_times(&file)).map_err(fail)
    }

    fn create(&mut self, place: &Place) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = self.replace(place, |at| rustix::fs::openat(&at.parent, &at.name, flags, mode))?;
        Ok(File::from(fd))
    }

    fn symlink(&mut self, place: &Place, entry: &Entry, target: &[u8]) -> io::Result<()> {
        self.replace(place, |at| rustix::fs::symlinkat(target, &at.parent, &at.name))?;
        self.usage.inodes += 1;
        attributes(entry).apply_at(&place.parent, place.name.as_bytes(), HasMode::No)
    }

    fn node(&mut self, place: &Place, entry: &Entry) -> io::Result<()> {
        let (kind, device) = match entry.kind {
            Kind::Character(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            Kind::Block(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        let mode = Mode::from_raw_mode(0o600);
        self.replace(place, |at| rustix::fs::mknodat(&at.parent, &at.name, kind, mode, device))?;
        self.usage.inodes += 1;
        attributes(entry).apply_at(&place.parent, place.name.as_bytes(), HasMode::Yes)
    }

    /// Links to an earlier entry. The metadata of the entry is ignored: the target has its own.
    fn hard_link(&mut self, place: &Place, target: &[u8]) -> Result<(), ImageError> {
        let target = clean(target);
        let fail = |e| failed(place.path, e, &[]);
        let Some(name) = target.file_name() else {
            return Err(ImageError::invalid(format!("{} links to the root directory", place.path.display())));
        };
        let parent = match self.tree.existing(target.parent().unwrap_or(Path::new(""))) {
            Ok(parent) => Some(parent),
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(fail(error)),
        };
        let found = match &parent {
            Some(parent) => stat_at(parent, name).map_err(fail)?.filter(|stat| !is_whiteout(stat)),
            None => None,
        };
        let (Some(parent), Some(stat)) = (parent, found) else {
            self.tree.remove(&place.parent, &place.name).map_err(fail)?;
            self.links.push(PendingLink { path: place.path.to_path_buf(), target });
            return Ok(());
        };
        if is_directory(&stat) {
            return Err(ImageError::invalid(format!("{} links to a directory", place.path.display())));
        }
        let same =
            stat_at(&place.parent, &place.name).map_err(fail)?.is_some_and(|s| s.st_ino == stat.st_ino);
        if same {
            return Ok(());
        }
        self.replace(place, |at| rustix::fs::linkat(&parent, name, &at.parent, &at.name, AtFlags::empty()))
            .map_err(fail)
    }

    /// Makes something at a place; what is there already goes.
    fn replace<T>(&mut self, place: &Place, make: impl Fn(&Place) -> rustix::io::Result<T>) -> io::Result<T> {
        match make(place) {
            Err(Errno::EXIST) => {
                self.tree.remove(&place.parent, &place.name)?;
                Ok(make(place)?)
            }
            other => Ok(other?),
        }
    }
}

/// Where an entry goes.
struct Place<'a> {
    parent: Directory,
    name: OsString,
    path: &'a Path,
}

/// Removes the whiteouts of a directory that hides everything below: where overlayfs has nothing to merge it shows
/// them, as names that lead to nothing.
pub fn prune_whiteouts(directory: &Directory) -> io::Result<()> {
    for name in children(directory)? {
        if stat_at(directory, &name)?.is_some_and(|stat| is_whiteout(&stat)) {
            rustix::fs::unlinkat(directory, &name, AtFlags::empty())?;
        }
    }
    Ok(())
}

enum WriteError {
    Stream(ImageError),
    File(io::Error),
}

fn or_stream(error: WriteError, fail: impl Fn(io::Error) -> ImageError) -> ImageError {
    match error {
        WriteError::Stream(error) => error,
        WriteError::File(error) => fail(error),
    }
}

fn write_all<R: BufRead>(mut file: &File, stream: &mut TarStream<'_, R>) -> Result<(), WriteError> {
    loop {
        let piece = stream.data().map_err(WriteError::Stream)?;
        if piece.is_empty() {
            return Ok(());
        }
        file.write_all(piece).map_err(WriteError::File)?;
        let length = piece.len();
        stream.consume(length);
    }
}

fn write_sparse<R: BufRead>(
    file: &File,
    map: &[(u64, u64)],
    stream: &mut TarStream<'_, R>,
) -> Result<(), WriteError> {
    for &(offset, length) in map {
        let mut written = 0;
        while written < length {
            let piece = stream.data().map_err(WriteError::Stream)?;
            let count = piece.len().min(usize::try_from(length - written).unwrap_or(usize::MAX));
            if count == 0 {
                return Err(WriteError::Stream(ImageError::invalid("a sparse file is truncated")));
            }
            file.write_all_at(&piece[..count], offset + written).map_err(WriteError::File)?;
            stream.consume(count);
            written += count as u64;
        }
    }
    Ok(())
}

fn attributes(entry: &Entry) -> Attributes {
    let Entry { mode, uid, gid, mtime, .. } = *entry;
    Attributes { mode, uid, gid, mtime, xattrs: entry.xattrs.clone() }
}

/// Errors that the archive caused are its own; the rest is this node's.
fn failed(path: &Path, error: io::Error, xattrs: &[(Vec<u8>, Vec<u8>)]) -> ImageError {
    let shown: String = path.display().to_string().chars().take(200).collect();
    // File systems report attributes that do not fit as a full disk.
    let large = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > 2048;
    match Errno::from_io_error(&error) {
        Some(
            Errno::NAMETOOLONG
            | Errno::LOOP
            | Errno::NOTDIR
            | Errno::ISDIR
            | Errno::INVAL
            | Errno::EXIST
            | Errno::NOENT
            | Errno::XDEV
            | Errno::MLINK
            | Errno::TOOBIG
            | Errno::RANGE,
        ) => ImageError::corrupt(format!("{shown:?} cannot be unpacked"), error),
        Some(Errno::NOSPC) if large => {
            ImageError::corrupt(format!("{shown:?} has too many attributes"), error)
        }
        _ => ImageError::io(format!("unpacking {shown:?}"), error),
    }
}

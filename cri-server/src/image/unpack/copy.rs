//! Copies of what is in a layer: whole trees by hard links, single nodes by their content.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;

use super::attributes::{Attributes, HasMode, is_opaque};
use super::tree::{children, is_directory};

const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Bytes of content that are copied at a time.
const PIECE: u64 = 8 << 20;

/// Fills the empty directory `to` with the tree of `from`: directories are made anew, everything else is a further
/// name of the same file. Both are on one file system.
pub fn link_tree(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    for name in children(&from)? {
        let stat = rustix::fs::statat(&from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_directory(&stat) {
            match rustix::fs::linkat(&from, &name, &to, &name, AtFlags::empty()) {
                Err(Errno::MLINK) => copy_node(&from, &name, &to, &name)?,
                other => other?,
            }
            continue;
        }
        rustix::fs::mkdirat(&to, &name, Mode::from_raw_mode(0o700))?;
        let source = rustix::fs::openat(&from, &name, OPEN_DIRECTORY, Mode::empty())?;
        let copy = rustix::fs::openat(&to, &name, OPEN_DIRECTORY, Mode::empty())?;
        link_tree(&source, &copy)?;
    }
    copy_directory_attributes(from, to)
}

/// Gives a directory what an image may say about another.
pub fn copy_directory_attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let attributes = Attributes::of(&from)?;
    attributes.apply(&to)?;
    if is_opaque(&from)? {
        rustix::fs::fsetxattr(&to, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
    }
    attributes.apply_times(&to)
}

/// Copies one node that is not a directory, with everything that an image may say about it.
pub fn copy_node(from: impl AsFd, name: &OsStr, to: impl AsFd, new_name: &OsStr) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(&from, name, flags, Mode::empty())?;
    copy_opened(source, to, new_name)
}

/// The same under the same name, where `spend` is told how many bytes of content come next and may refuse.
pub fn copy_node_within(
    from: impl AsFd,
    name: &OsStr,
    to: impl AsFd,
    spend: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    copy(rustix::fs::openat(&from, name, flags, Mode::empty())?, to, name, spend)
}

/// The same for a node that is open as a path.
pub fn copy_opened(source: OwnedFd, to: impl AsFd, new_name: &OsStr) -> io::Result<()> {
    copy(source, to, new_name, &mut |_| Ok(()))
}

fn copy(
    source: OwnedFd,
    to: impl AsFd,
    new_name: &OsStr,
    spend: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let stat = rustix::fs::fstat(&source)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let attributes = Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        xattrs: Vec::new(),
    };
    match kind {
        FileType::RegularFile => return copy_file(source, to, new_name, spend),
        FileType::Directory => return Err(Errno::ISDIR.into()),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&source, "", Vec::new())?;
            rustix::fs::symlinkat(target, &to, new_name)?;
            return attributes.apply_at(to, new_name.as_bytes(), HasMode::No);
        }
        _ => rustix::fs::mknodat(&to, new_name, kind, Mode::from_raw_mode(0o600), stat.st_rdev)?,
    }
    attributes.apply_at(to, new_name.as_bytes(), HasMode::Yes)
}

fn copy_file(
    source: OwnedFd,
    to: impl AsFd,
    new_name: &OsStr,
    spend: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    // A descriptor for the path alone cannot be read; its entry in /proc leads to the same file.
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    let source = File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut copy = File::from(rustix::fs::openat(to, new_name, flags, Mode::from_raw_mode(0o600))?);
    copy_content(&source, &mut copy, spend)?;
    let attributes = Attributes::of(&source)?;
    attributes.apply(&copy)?;
    attributes.apply_times(&copy)
}

/// Copies what is not a hole.
fn copy_content(
    mut source: &File,
    copy: &mut File,
    spend: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let size = source.metadata()?.len();
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(begin))?.min(size);
        for file in [source, &*copy] {
            rustix::fs::seek(file, SeekFrom::Start(begin))?;
        }
        at = begin;
        while at < end {
            let piece = PIECE.min(end - at);
            spend(piece)?;
            if io::copy(&mut source.by_ref().take(piece), copy)? != piece {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += piece;
        }
    }
    copy.set_len(size)
}

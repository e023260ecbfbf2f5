//! A layer's directory as a tar archive: the same bytes whenever it is asked, names sorted, overlayfs' deletions as
//! whiteouts (layer.md). Owners, modes, times to the nanosecond, attributes and hard links are kept.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use tar::{Builder, EntryType, Header};

use crate::image::unpack::attributes::{Attributes, is_opaque};
use crate::image::unpack::tree::{children, is_whiteout};

const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Longest name of a plain header.
const MAX_NAME: usize = 100;

/// Writes the archive of the layer in `directory`.
pub fn write_layer(directory: &Path, to: impl Write) -> io::Result<()> {
    let root = rustix::fs::open(directory, OPEN_DIRECTORY, Mode::empty())?;
    let mut writer = LayerWriter { builder: Builder::new(to), written: HashMap::new() };
    writer.directory(&root, Path::new(""))?;
    writer.builder.finish()
}

struct LayerWriter<W: Write> {
    builder: Builder<W>,
    /// First names of files that have several, by inode.
    written: HashMap<u64, PathBuf>,
}

/// What an entry says beside its content.
struct Member<'a> {
    path: &'a Path,
    kind: EntryType,
    stat: &'a Stat,
    link: &'a [u8],
    xattrs: &'a [(Vec<u8>, Vec<u8>)],
    size: u64,
}

impl<W: Write> LayerWriter<W> {
    fn directory(&mut self, directory: &OwnedFd, path: &Path) -> io::Result<()> {
        let stat = rustix::fs::fstat(directory)?;
        let xattrs = Attributes::of(directory)?.xattrs;
        let shown = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let kind = EntryType::Directory;
        self.entry(
            Member { path: shown, kind, stat: &stat, link: b"", xattrs: &xattrs, size: 0 },
            io::empty(),
        )?;
        if is_opaque(directory)? {
            self.marker(&path.join(".wh..wh..opq"), &stat)?;
        }
        for name in children(directory)? {
            self.child(directory, &name, &path.join(&name))?;
        }
        Ok(())
    }

    fn child(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let directory = rustix::fs::openat(parent, name, OPEN_DIRECTORY, Mode::empty())?;
            return self.directory(&directory, path);
        }
        if is_whiteout(&stat) {
            let hidden = [b".wh.", name.as_bytes()].concat();
            return self.marker(&path.with_file_name(OsStr::from_bytes(&hidden)), &stat);
        }
        let member = Member { path, kind: EntryType::Regular, stat: &stat, link: b"", xattrs: &[], size: 0 };
        if stat.st_nlink > 1 {
            if let Some(first) = self.written.get(&stat.st_ino) {
                let first = first.as_os_str().as_bytes().to_vec();
                return self.entry(Member { kind: EntryType::Link, link: &first, ..member }, io::empty());
            }
            self.written.insert(stat.st_ino, path.to_path_buf());
        }
        match kind {
            FileType::RegularFile => self.file(parent, name, member),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes();
                self.entry(Member { kind: EntryType::Symlink, link: &target, ..member }, io::empty())
            }
            FileType::CharacterDevice => self.entry(Member { kind: EntryType::Char, ..member }, io::empty()),
            FileType::BlockDevice => self.entry(Member { kind: EntryType::Block, ..member }, io::empty()),
            FileType::Fifo => self.entry(Member { kind: EntryType::Fifo, ..member }, io::empty()),
            // A socket is no part of an image.
            _ => Ok(()),
        }
    }

    fn file(&mut self, parent: impl AsFd, name: &OsStr, member: Member) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?);
        let xattrs = Attributes::of(&file)?.xattrs;
        let size = member.stat.st_size as u64;
        self.entry(Member { xattrs: &xattrs, size, ..member }, file.take(size))
    }

    /// A whiteout. Nobody asks when or by whom something was deleted.
    fn marker(&mut self, path: &Path, stat: &Stat) -> io::Result<()> {
        let mut stat = *stat;
        (stat.st_mode, stat.st_uid, stat.st_gid) = (0, 0, 0);
        (stat.st_mtime, stat.st_mtime_nsec) = (0, 0);
        let kind = EntryType::Regular;
        self.entry(Member { path, kind, stat: &stat, link: b"", xattrs: &[], size: 0 }, io::empty())
    }

    fn entry(&mut self, member: Member, content: impl Read) -> io::Result<()> {
        let mut name = member.path.as_os_str().as_bytes().to_vec();
        if member.kind == EntryType::Directory {
            name.push(b'/');
        }
        let mut extended: Vec<(String, Vec<u8>)> = Vec::new();
        if name.len() > MAX_NAME {
            extended.push(("path".into(), name.clone()));
        }
        if member.link.len() > MAX_NAME {
            extended.push(("linkpath".into(), member.link.to_vec()));
        }
        let stat = member.stat;
        if stat.st_mtime < 0 || stat.st_mtime_nsec != 0 {
            extended.push(("mtime".into(), time(stat.st_mtime, stat.st_mtime_nsec as u32).into_bytes()));
        }
        for (key, value) in member.xattrs {
            let key = String::from_utf8(key.clone()).map_err(io::Error::other)?;
            extended.push((format!("SCHILY.xattr.{key}"), value.clone()));
        }
        let records = extended.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(records)?;
        let header = header(&member, &name)?;
        let mut content = content;
        self.builder.append(&header, &mut content)
    }
}

fn header(member: &Member, name: &[u8]) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    let stat = member.stat;
    let fill = |field: &mut [u8], value: &[u8]| {
        let length = value.len().min(field.len());
        field[..length].copy_from_slice(&value[..length]);
    };
    fill(&mut header.as_old_mut().name, name);
    fill(&mut header.as_old_mut().linkname, member.link);
    header.set_entry_type(member.kind);
    header.set_size(member.size);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(stat.st_mtime.max(0) as u64);
    if matches!(member.kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(rustix::fs::major(stat.st_rdev))?;
        header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
    }
    header.set_cksum();
    Ok(header)
}

/// Decimal seconds with nine digits of fraction.
fn time(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (0.., _) => format!("{seconds}.{nanos:09}"),
        (_, 0) => seconds.to_string(),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    }
}

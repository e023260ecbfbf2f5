//! The archive of a writable layer whose container goes on: what is in it changes while it is read, and is hostile.
//!
//! Each entry is opened by descriptor, without following and without opening what it stands for; what it is, is asked
//! of that descriptor, and content is read through it. So nothing that a container puts in an entry's place leads out
//! of the layer or holds the walk up.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags};

/// Deepest directory: each level holds a descriptor.
const MAX_DEPTH: usize = 128;
/// Most entries.
const MAX_ENTRIES: u64 = 2_000_000;
/// Most bytes of the names that are remembered, of files that have several.
const MAX_REMEMBERED: usize = 64 << 20;

const ENTRY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Writes the directory tree at `layer` to `archive`. Sockets are left out, as are other file systems; a file with
/// several names is there once. Fails for a tree of more than 128 levels or 2 million entries. Blocks.
pub fn append<W: Write>(archive: &mut tar::Builder<W>, layer: &Path) -> io::Result<()> {
    let top = File::from(rustix::fs::openat(CWD, layer, LIST, Mode::empty())?);
    let metadata = top.metadata()?;
    let mut walk = Walk { archive, device: metadata.dev(), named: HashMap::new(), remembered: 0, entries: 0 };
    walk.append(&metadata, Path::new("."), io::empty())?;
    let mut stack = vec![(Dir::new(OwnedFd::from(top))?, PathBuf::new())];
    while let Some((dir, path)) = stack.last_mut() {
        let Some(entry) = dir.next() else {
            stack.pop();
            continue;
        };
        let entry = entry?;
        if [c".", c".."].contains(&entry.file_name()) {
            continue;
        }
        let path = path.join(OsStr::from_bytes(entry.file_name().to_bytes()));
        if let Some(child) = walk.visit(dir.fd()?, entry.file_name(), &path)? {
            if stack.len() >= MAX_DEPTH {
                return Err(io::Error::other(format!("it has more than {MAX_DEPTH} levels")));
            }
            stack.push((child, path));
        }
    }
    Ok(())
}

struct Walk<'a, W: Write> {
    archive: &'a mut tar::Builder<W>,
    device: u64,
    /// Inodes with several names: the one in the archive.
    named: HashMap<u64, PathBuf>,
    remembered: usize,
    entries: u64,
}

impl<W: Write> Walk<'_, W> {
    /// Writes one entry; a directory to go on with is returned open. What has vanished is no entry.
    fn visit(&mut self, parent: impl AsFd, name: &CStr, path: &Path) -> io::Result<Option<Dir>> {
        let entry = match rustix::fs::openat(parent, name, ENTRY, Mode::empty()) {
            Ok(entry) => File::from(entry),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = entry.metadata()?;
        let kind = metadata.file_type();
        if kind.is_socket() || metadata.dev() != self.device {
            return Ok(None);
        }
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(io::Error::other(format!("it has more than {MAX_ENTRIES} entries")));
        }
        if kind.is_dir() {
            self.append(&metadata, path, io::empty())?;
            return Ok(Some(Dir::new(rustix::fs::openat(&entry, c".", LIST, Mode::empty())?)?));
        }
        match self.other_name(&metadata, path)? {
            Some(other) => self.append_link(&metadata, path, &other)?,
            None if kind.is_symlink() => {
                let target = rustix::fs::readlinkat(&entry, c"", Vec::new())?;
                self.append_symlink(&metadata, path, Path::new(OsStr::from_bytes(target.to_bytes())))?;
            }
            None if kind.is_file() => self.append_file(&entry, &metadata, path)?,
            None => self.append(&metadata, path, io::empty())?,
        }
        Ok(None)
    }

    /// The name under which the archive has this inode already.
    fn other_name(&mut self, metadata: &Metadata, path: &Path) -> io::Result<Option<PathBuf>> {
        if metadata.nlink() < 2 {
            return Ok(None);
        }
        if let Some(other) = self.named.get(&metadata.ino()) {
            return Ok(Some(other.clone()));
        }
        self.remembered += path.as_os_str().len();
        if self.remembered > MAX_REMEMBERED {
            return Err(io::Error::other("it has too many files with several names"));
        }
        self.named.insert(metadata.ino(), path.to_owned());
        Ok(None)
    }

    /// A regular file, as long as it was when it was looked at. One with holes is written without them.
    fn append_file(&mut self, entry: &File, metadata: &Metadata, path: &Path) -> io::Result<()> {
        // The descriptor's own inode, whatever has its name by now.
        let mut file = File::open(format!("/proc/self/fd/{}", entry.as_raw_fd()))?;
        if metadata.blocks().saturating_mul(512) < metadata.len() {
            return self.archive.append_file(path, &mut file);
        }
        let content = file.take(metadata.len()).chain(io::repeat(0)).take(metadata.len());
        self.append(metadata, path, content)
    }

    fn append(&mut self, metadata: &Metadata, path: &Path, content: impl Read) -> io::Result<()> {
        self.archive.append_data(&mut header(metadata), path, content)
    }

    fn append_symlink(&mut self, metadata: &Metadata, path: &Path, target: &Path) -> io::Result<()> {
        self.archive.append_link(&mut header(metadata), path, target)
    }

    fn append_link(&mut self, metadata: &Metadata, path: &Path, target: &Path) -> io::Result<()> {
        let mut header = header(metadata);
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        self.archive.append_link(&mut header, path, target)
    }
}

fn header(metadata: &Metadata) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn archived(layer: &Path) -> io::Result<BTreeMap<String, (tar::EntryType, Vec<u8>)>> {
        let mut archive = tar::Builder::new(Vec::new());
        append(&mut archive, layer)?;
        let bytes = archive.into_inner()?;
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            if let Some(link) = entry.link_name()? {
                content = link.as_os_str().as_bytes().to_vec();
            }
            found.insert(name, (entry.header().entry_type(), content));
        }
        Ok(found)
    }

    #[test]
    fn an_archive_has_what_a_layer_has() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("etc/deep")).unwrap();
        std::fs::write(at("etc/file"), "text").unwrap();
        std::fs::hard_link(at("etc/file"), at("etc/deep/same")).unwrap();
        symlink("/etc/shadow", at("link")).unwrap();
        rustix::fs::mknodat(CWD, at("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let holes = File::create(at("holes")).unwrap();
        holes.set_len(1 << 20).unwrap();
        let long = "n".repeat(200);
        std::fs::write(at(&long), "long").unwrap();
        let found = archived(dir.path()).unwrap();
        let check = |name: &str, kind, content: &[u8]| {
            assert_eq!(found.get(name), Some(&(kind, content.to_vec())), "{name}");
        };
        use tar::EntryType as Type;
        check("link", Type::Symlink, b"/etc/shadow");
        check("fifo", Type::Fifo, b"");
        check("holes", Type::GNUSparse, &vec![0; 1 << 20]);
        check(&long, Type::Regular, b"long");
        check("etc/deep", Type::Directory, b"");
        let linked = [&found["etc/file"], &found["etc/deep/same"]];
        assert_eq!(linked.iter().filter(|(kind, _)| *kind == Type::Link).count(), 1, "{linked:?}");
        assert!(!found.contains_key("socket"));
        assert!(archived(&at("link")).is_err());
    }

    #[test]
    fn an_entry_that_is_swapped_meanwhile_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, secret) = (dir.path().join("layer"), dir.path().join("secret"));
        std::fs::create_dir(&layer).unwrap();
        std::fs::write(&secret, "the node's").unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (victim, new) = (layer.join("victim"), layer.join("new"));
                while !stop.load(Ordering::Relaxed) {
                    std::fs::write(&new, "own").unwrap();
                    std::fs::rename(&new, &victim).unwrap();
                    symlink(&secret, &new).unwrap();
                    std::fs::rename(&new, &victim).unwrap();
                    rustix::fs::mknodat(CWD, &new, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
                    std::fs::rename(&new, &victim).unwrap();
                }
            });
            let walks: Vec<_> = (0..2000).map(|_| archived(&layer)).collect();
            stop.store(true, Ordering::Relaxed);
            for found in walks {
                let contents = found.unwrap().into_values();
                assert!(contents.into_iter().all(|(_, content)| content != b"the node's"));
            }
        });
    }

    #[test]
    fn depth_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("d/".repeat(200))).unwrap();
        assert!(archived(dir.path()).unwrap_err().to_string().contains("128 levels"));
    }
}

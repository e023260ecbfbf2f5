//! Reservations on disk, in the layout of the reference plugin, so that either can take over from the other:
//! `<dataDir>/<network>/<address>` holds `container\r\ninterface`, `last_reserved_ip.<set>` the last address given
//! out of a set, and `lock` is locked around everything.
//!
//! A reservation appears whole, by renaming: killed at any instant, there is a reservation or there is none.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proto::cni::{Attachment, CniError, ErrorCode};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// What a reservation is written to before it gets its name.
const DRAFT: &str = ".draft";

/// The locked reservations of one network.
#[derive(Debug)]
pub struct Store {
    dir: OwnedFd,
    path: PathBuf,
    /// Closing it unlocks.
    _lock: File,
}

/// One reserved address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub address: IpAddr,
    /// The container.
    pub container: String,
    /// The interface; old stores have none.
    pub ifname: Option<String>,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}")]
pub struct StoreError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Store {
    /// Locks the network's reservations, after making the directory if it is not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(data_dir: &Path, network: &str) -> Result<Self, StoreError> {
        let path = data_dir.join(network);
        let dir = match open_dir(&path) {
            Err(Errno::NOENT) => {
                std::fs::create_dir_all(&path).map_err(|source| failed("creating", &path, source))?;
                open_dir(&path)
            }
            other => other,
        };
        Self::lock(dir.map_err(|errno| failed("opening", &path, errno))?, path)
    }

    /// As [`Store::open`]; `None` where the network has no directory, and so no reservation.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_existing(data_dir: &Path, network: &str) -> Result<Option<Self>, StoreError> {
        let path = data_dir.join(network);
        match open_dir(&path) {
            Ok(dir) => Self::lock(dir, path).map(Some),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(failed("opening", &path, errno)),
        }
    }

    fn lock(dir: OwnedFd, path: PathBuf) -> Result<Self, StoreError> {
        let lock_path = path.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = rustix::fs::openat(&dir, "lock", flags, Mode::from_raw_mode(0o644))
            .map_err(|errno| failed("opening", &lock_path, errno))?;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { dir, path, _lock: lock.into() }),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed("locking", &lock_path, errno)),
            }
        }
    }

    /// Every reservation. An empty file is none: it is what a crash of the reference plugin leaves, and nobody else
    /// can be writing it while the lock is held here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reservations(&self) -> Result<Vec<Reservation>, StoreError> {
        let listing = |errno| failed("listing", &self.path, errno);
        let mut found = Vec::new();
        for entry in Dir::read_from(&self.dir).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            let Some(name) = entry.file_name().to_str().ok().filter(|name| name.parse::<IpAddr>().is_ok())
            else {
                continue;
            };
            let Some(text) = self.read(name)? else { continue };
            let mut lines = text.split(['\r', '\n']).filter(|line| !line.is_empty());
            if let (Ok(address), Some(container)) = (name.parse(), lines.next()) {
                let ifname = lines.next().map(str::to_owned);
                found.push(Reservation { address, container: container.to_owned(), ifname });
            }
        }
        Ok(found)
    }

    /// Reserves an address that is not in [`Store::reservations`], and remembers it as the last of its set.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reserve(&self, address: IpAddr, owner: &Attachment, set: usize) -> Result<(), StoreError> {
        let name = address.to_string();
        let path = self.path.join(&name);
        let writing = |source: io::Error| failed("writing", &path, source);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let draft = rustix::fs::openat(&self.dir, DRAFT, flags, Mode::from_raw_mode(0o644))
            .map_err(|errno| writing(errno.into()))?;
        let content = format!("{}\r\n{}", owner.container_id, owner.ifname);
        File::from(draft).write_all(content.as_bytes()).map_err(writing)?;
        match rustix::fs::renameat_with(&self.dir, DRAFT, &self.dir, &name, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // An empty leftover, or a file system without this kind of renaming; under the lock it is the same.
            Err(Errno::EXIST | Errno::INVAL) => {
                rustix::fs::renameat(&self.dir, DRAFT, &self.dir, &name)
                    .map_err(|errno| writing(errno.into()))?;
            }
            Err(errno) => return Err(writing(errno.into())),
        }
        self.remember(&name, set)
    }

    /// The address that was given out of a set last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last(&self, set: usize) -> Result<Option<IpAddr>, StoreError> {
        let text = self.read(&format!("last_reserved_ip.{set}"))?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// Gives an address back; it may be gone already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn release(&self, address: IpAddr) -> Result<(), StoreError> {
        self.unlink(&address.to_string())
    }

    /// Removes what a killed reservation may have left.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn sweep(&self) -> Result<(), StoreError> {
        self.unlink(DRAFT)
    }

    fn unlink(&self, name: &str) -> Result<(), StoreError> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("removing", &self.path.join(name), errno)),
        }
    }

    /// Only a hint for the round robin: overwritten in place.
    fn remember(&self, name: &str, set: usize) -> Result<(), StoreError> {
        let file_name = format!("last_reserved_ip.{set}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::openat(&self.dir, &file_name, flags, Mode::from_raw_mode(0o644));
        let write = |file: File| {
            file.write_all_at(name.as_bytes(), 0)?;
            file.set_len(name.len() as u64)
        };
        opened
            .map_err(io::Error::from)
            .and_then(|fd| write(fd.into()))
            .map_err(|source| failed("writing", &self.path.join(&file_name), source))
    }

    /// The content of a small regular file; `None` where there is none.
    fn read(&self, name: &str) -> Result<Option<String>, StoreError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let reading = |source: io::Error| failed("reading", &self.path.join(name), source);
        let file = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(reading(errno.into())),
        };
        let mut bytes = [0; 512];
        let length = (&file).read(&mut bytes).map_err(reading)?;
        Ok(Some(String::from_utf8_lossy(&bytes[..length]).into_owned()))
    }
}

impl Reservation {
    /// Whether it was made for `attachment`. One without interface belongs to the whole container.
    pub fn is_of(&self, attachment: &Attachment) -> bool {
        let ifname = self.ifname.as_deref().is_none_or(|ifname| ifname == attachment.ifname.as_str());
        self.container == attachment.container_id.as_str() && ifname
    }
}

impl From<StoreError> for CniError {
    fn from(error: StoreError) -> Self {
        Self::caused(ErrorCode::IO_FAILURE, "address store of host-local", &error)
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn failed(what: &'static str, path: &Path, source: impl Into<io::Error>) -> StoreError {
    StoreError { what, path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment { container_id: container.parse().unwrap(), ifname: "eth0".parse().unwrap() }
    }

    #[test]
    fn the_layout_is_the_references() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "n").unwrap();
        store.reserve("10.0.0.10".parse().unwrap(), &attachment("c1"), 0).unwrap();
        store.reserve("fd00::5".parse().unwrap(), &attachment("c1"), 1).unwrap();
        store.reserve("10.0.0.2".parse().unwrap(), &attachment("c2"), 0).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join("n").join(name)).unwrap();
        assert_eq!(read("10.0.0.10"), "c1\r\neth0");
        assert_eq!(read("last_reserved_ip.0"), "10.0.0.2");
        assert_eq!(store.last(1).unwrap(), Some("fd00::5".parse().unwrap()));
        assert_eq!(store.last(7).unwrap(), None);
        store.release("10.0.0.2".parse().unwrap()).unwrap();
        store.release("10.0.0.2".parse().unwrap()).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir.path().join("n"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["10.0.0.10", "fd00::5", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
    }

    #[test]
    fn what_others_left_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let network = dir.path().join("n");
        std::fs::create_dir(&network).unwrap();
        let write = |name: &str, content: &str| std::fs::write(network.join(name), content).unwrap();
        write("10.0.0.2", "c1\r\neth0");
        write("10.0.0.3", "c1\neth1\n");
        write("10.0.0.4", "c1");
        write("10.0.0.5", "");
        write("notes", "x");
        write("last_reserved_ip.0", "");
        let store = Store::open(dir.path(), "n").unwrap();
        let mut found = store.reservations().unwrap();
        found.sort_by_key(|reservation| reservation.address);
        let owned: Vec<bool> = found.iter().map(|reservation| reservation.is_of(&attachment("c1"))).collect();
        assert_eq!(owned, [true, false, true]);
        assert_eq!(store.last(0).unwrap(), None);
        store.reserve("10.0.0.5".parse().unwrap(), &attachment("c2"), 0).unwrap();
        assert_eq!(store.reservations().unwrap().len(), 4);
        assert!(Store::open_existing(dir.path(), "m").unwrap().is_none());
    }
}

//! Reservations on disk, in the layout of the reference plugin, so that either can take over from the other:
//! `<dataDir>/<network>/<address>` holds `container\r\ninterface`, `last_reserved_ip.<set>` the last address given
//! out of a set, and `lock` is locked around everything.
//!
//! A reservation appears whole, by renaming: killed at any instant, there is a reservation or there is none. Beside
//! them, under names that begin with a dot, is what the reference does not know: [`super::owners`],
//! [`super::cooling`], [`super::pool`], and `.boot`, the boot that all of it is of.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::cni::{Attachment, CniError, ErrorCode};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::cooling::Cooling;
use super::owners::Owners;
use crate::net::netns;

/// What a file is written to before it gets its name.
const DRAFT: &str = ".draft";
const BOOT: &str = ".boot";
const COOLING: &str = ".cooling";

/// The locked reservations of one network.
#[derive(Debug)]
pub struct Store {
    dir: OwnedFd,
    path: PathBuf,
    boot: String,
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
        let store = Self::lock(dir.map_err(|errno| failed("opening", &path, errno))?, path)?;
        if store.is_of_earlier_boot()? {
            store.begin_boot()?;
            store.note_boot()?;
        }
        Ok(store)
    }

    /// As [`Store::open`], for whoever gives back; `None` where the network has no directory, and so no reservation. A
    /// full disk is no obstacle: what cannot be noted is left to the next who opens the store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_existing(data_dir: &Path, network: &str) -> Result<Option<Self>, StoreError> {
        let path = data_dir.join(network);
        match open_dir(&path) {
            Ok(dir) => {
                let store = Self::lock(dir, path)?;
                if store.is_of_earlier_boot()? {
                    store.begin_boot()?;
                    let _ = store.note_boot();
                }
                Ok(Some(store))
            }
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
                Ok(()) => break,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed("locking", &lock_path, errno)),
            }
        }
        let boot = netns::boot_id().map_err(|error| failed("reading", Path::new(netns::BOOT_ID), error))?;
        Ok(Self { dir, path, boot, _lock: lock.into() })
    }

    fn is_of_earlier_boot(&self) -> Result<bool, StoreError> {
        Ok(self.read(BOOT)?.as_deref() != Some(&self.boot))
    }

    /// Frees what an earlier boot gave and forgets what was noted in it. Reservations that nobody noted stay: they are
    /// another plugin's.
    fn begin_boot(&self) -> Result<(), StoreError> {
        let all = self.reservations()?;
        for (attachment, held) in self.noted(self.owners().all())? {
            if held.boot == self.boot {
                continue;
            }
            let own = all.iter().filter(|found| found.is_of(&attachment));
            own.map(|found| found.address).try_for_each(|address| self.release(address))?;
            self.noted(self.owners().remove(&attachment))?;
        }
        for entry in self.names()?.iter().filter(|name| name.starts_with(".taken.") || *name == COOLING) {
            self.unlink(entry)?;
        }
        Ok(())
    }

    fn note_boot(&self) -> Result<(), StoreError> {
        self.write_whole(BOOT, self.boot.as_bytes())
    }

    /// Whether no plugin has given an address of it yet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_untouched(&self) -> Result<bool, StoreError> {
        let touched = |name: &String| name.starts_with("last_reserved_ip.") || name.parse::<IpAddr>().is_ok();
        Ok(!self.names()?.iter().any(touched))
    }

    /// The boot that the store is of.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Who holds what.
    pub fn owners(&self) -> Owners<'_> {
        Owners::new(&self.dir)
    }

    /// A failure of [`Store::owners`] as the store's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn noted<T>(&self, outcome: io::Result<T>) -> Result<T, StoreError> {
        outcome.map_err(|error| self.failed("using", super::owners::OWNERS, error))
    }

    /// A failure on one of the store's files.
    pub fn failed(&self, what: &'static str, name: &str, error: impl Into<io::Error>) -> StoreError {
        failed(what, &self.path.join(name), error)
    }

    /// A file of notes, made if it is not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn state_file(&self, name: &str) -> Result<File, StoreError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::openat(&self.dir, name, flags, Mode::from_raw_mode(0o644));
        opened.map(File::from).map_err(|errno| self.failed("opening", name, errno))
    }

    fn cooling<T>(&self, work: impl FnOnce(&Cooling) -> io::Result<T>) -> Result<T, StoreError> {
        let cooling = Cooling::new(self.state_file(COOLING)?);
        work(&cooling).map_err(|error| self.failed("using", COOLING, error))
    }

    /// The addresses that rest, the longest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn resting(&self) -> Result<Vec<IpAddr>, StoreError> {
        self.cooling(Cooling::resting)
    }

    /// Takes out the addresses that have rested for `rest`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rested(&self, rest: Duration) -> Result<Vec<IpAddr>, StoreError> {
        self.cooling(|cooling| cooling.rested(rest))
    }

    /// Whether an address is reserved.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_held(&self, address: IpAddr) -> Result<bool, StoreError> {
        let name = address.to_string();
        match rustix::fs::statat(&self.dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(found.st_size > 0),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed("looking up", &name, errno)),
        }
    }

    /// Every reserved address.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn held(&self) -> Result<Vec<IpAddr>, StoreError> {
        let names = self.names()?;
        let addresses = names.iter().filter_map(|name| name.parse().ok());
        let held = addresses.filter_map(|address| match self.is_held(address) {
            Ok(held) => held.then_some(Ok(address)),
            Err(error) => Some(Err(error)),
        });
        held.collect()
    }

    /// The reservation of an address.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn holder(&self, address: IpAddr) -> Result<Option<Reservation>, StoreError> {
        let text = self.read(&address.to_string())?.unwrap_or_default();
        let mut lines = text.split(['\r', '\n']).filter(|line| !line.is_empty());
        let Some(container) = lines.next().map(str::to_owned) else { return Ok(None) };
        Ok(Some(Reservation { address, container, ifname: lines.next().map(str::to_owned) }))
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let listing = |errno| failed("listing", &self.path, errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir).map_err(listing)? {
            names.push(entry.map_err(listing)?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// Every reservation. An empty file is none: it is what a crash of the reference plugin leaves, and nobody else
    /// can be writing it while the lock is held here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reservations(&self) -> Result<Vec<Reservation>, StoreError> {
        let names = self.names()?;
        let addresses = names.iter().filter_map(|name| name.parse().ok());
        addresses.filter_map(|address| self.holder(address).transpose()).collect()
    }

    /// Reserves an address that is not held, and remembers it as the last of its set.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reserve(&self, address: IpAddr, owner: &Attachment, set: usize) -> Result<(), StoreError> {
        let name = address.to_string();
        // An empty leftover of a crash is replaced.
        self.write_whole(&name, format!("{}\r\n{}", owner.container_id, owner.ifname).as_bytes())?;
        self.remember(&name, set)
    }

    /// Writes a file that is there whole or not at all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write_whole(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let writing = |source: io::Error| self.failed("writing", name, source);
        let draft = rustix::fs::openat(&self.dir, DRAFT, flags, Mode::from_raw_mode(0o644))
            .map_err(|errno| writing(errno.into()))?;
        File::from(draft).write_all(content).map_err(writing)?;
        rustix::fs::renameat(&self.dir, DRAFT, &self.dir, name).map_err(|errno| writing(errno.into()))
    }

    /// The address that was given out of a set last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last(&self, set: usize) -> Result<Option<IpAddr>, StoreError> {
        let text = self.read(&format!("last_reserved_ip.{set}"))?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// Gives an address back, to rest; it may be gone already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn retire(&self, address: IpAddr) -> Result<(), StoreError> {
        // Killed in between, it rests and is held: then the reservation counts. To rest is a courtesy: on a full disk
        // it is free at once.
        let _ = self.cooling(|cooling| cooling.push(address));
        self.release(address)
    }

    /// Gives an address back that nobody has used; it may be gone already.
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
        names.retain(|name| !name.starts_with('.'));
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

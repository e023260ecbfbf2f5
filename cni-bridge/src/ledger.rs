//! What attachments use beside the links in their own namespaces: which namespace that was, and which links of the
//! host they share. Kept in files below `/run/cni/berth`, one directory per network namespace that plays the host,
//! under a lock; an entry is written before what it stands for is made, and removed after that is gone.
//!
//! It is of one boot: what is found of an earlier one is forgotten, because no link has survived that.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use proto::cni::{CniError, ErrorCode};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::net::netns::{self, Identity, NetNs, NetNsError};
use crate::owner::{Owner, hashed_name};

/// Where ledgers are kept unless `stateDir` says otherwise.
pub const STATE_DIR: &str = "/run/cni/berth";

/// The locked ledger of this host.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    /// Closing it unlocks.
    _lock: File,
}

/// What one attachment uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path of its namespace.
    #[serde(default)]
    pub path: PathBuf,
    /// Which namespace was there.
    #[serde(default)]
    pub netns: Option<Identity>,
    /// Links of the host that it shares with others, the highest first.
    #[serde(default)]
    pub shared: Vec<String>,
    /// Addresses that the host reaches through a shim.
    #[serde(default)]
    pub reached: Vec<IpAddr>,
}

impl Entry {
    /// Whether its namespace is there, as far as is known.
    fn is_alive(&self) -> bool {
        let Some(identity) = self.netns else { return true };
        match NetNs::open(&self.path).and_then(|netns| netns.identity()) {
            Ok(found) => found == identity,
            Err(NetNsError::Gone(_)) => false,
            Err(_) => true,
        }
    }
}

/// Why the ledger failed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}")]
pub struct LedgerError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Ledger {
    /// Locks the ledger of the calling thread's network namespace, made if it is not there.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn open(base: &Path) -> Result<Self, LedgerError> {
        let dir = host_dir(base)?;
        let _lock = lock(&dir.join("lock"))?;
        let ledger = Self { dir, _lock };
        ledger.forget_other_boots()?;
        Ok(ledger)
    }

    /// Writes what an attachment is going to use.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn write(&self, owner: &Owner, entry: &Entry) -> Result<(), LedgerError> {
        let name = file_name(owner.tag());
        let path = self.entries().join(&name);
        let draft = self.dir.join("draft");
        let text = serde_json::to_vec(entry).map_err(io::Error::from);
        let written = text.and_then(|text| {
            std::fs::create_dir_all(self.entries())?;
            std::fs::write(&draft, text)?;
            std::fs::rename(&draft, &path)
        });
        written.map_err(failed("writing", &path))?;
        // After the entry, which is where DEL learns of them.
        for link in &entry.shared {
            let users = self.dir.join("shared").join(link);
            std::fs::create_dir_all(&users).map_err(failed("creating", &users))?;
            let path = users.join(&name);
            std::fs::write(&path, "").map_err(failed("writing", &path))?;
        }
        Ok(())
    }

    /// What an attachment uses; `None` where nothing was written. An entry that cannot be read names nothing.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn read(&self, owner: &Owner) -> Result<Option<Entry>, LedgerError> {
        let path = self.entries().join(file_name(owner.tag()));
        match std::fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_default())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    /// Takes the attachment's name from the users of a link; whether others remain.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn release(&self, link: &str, owner: &Owner) -> Result<Users, LedgerError> {
        unlink(&self.dir.join("shared").join(link).join(file_name(owner.tag())))?;
        self.users(link)
    }

    /// Whether anybody uses a shared link.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn users(&self, link: &str) -> Result<Users, LedgerError> {
        let path = self.dir.join("shared").join(link);
        match std::fs::remove_dir(&path) {
            Ok(()) => Ok(Users::None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Users::None),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(Users::Some),
            Err(error) => Err(failed("removing", &path)(error)),
        }
    }

    /// A network other than `network` that has a living user of a shared link: nobody collects the garbage of a
    /// network that has no configuration any more.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn other_network(&self, link: &str, network: &str) -> Result<Option<String>, LedgerError> {
        for user in names(&self.dir.join("shared").join(link))? {
            let Some(owner) = owner_of(&user) else { continue };
            let other = owner.parts().0;
            if other != network && self.read(&owner)?.is_some_and(|entry| entry.is_alive()) {
                return Ok(Some(other.to_owned()));
            }
        }
        Ok(None)
    }

    /// Forgets an attachment.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn forget(&self, owner: &Owner) -> Result<(), LedgerError> {
        unlink(&self.entries().join(file_name(owner.tag())))
    }

    /// The owners of all entries.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn owners(&self) -> Result<Vec<Owner>, LedgerError> {
        let found = names(&self.entries())?;
        Ok(found.iter().filter_map(|name| owner_of(name)).collect())
    }

    /// A mark on a shared link, kept as long as it has users.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mark(&self, mark: &str) -> Result<(), LedgerError> {
        let path = self.dir.join(mark);
        std::fs::write(&path, "").map_err(failed("writing", &path))
    }

    /// Whether there is a mark.
    pub fn is_marked(&self, mark: &str) -> bool {
        self.dir.join(mark).exists()
    }

    /// What follows `prefix` in the marks that begin with it.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn marked(&self, prefix: &str) -> Result<Vec<String>, LedgerError> {
        let found = names(&self.dir)?;
        Ok(found.iter().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect())
    }

    /// Removes a mark.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn unmark(&self, mark: &str) -> Result<(), LedgerError> {
        unlink(&self.dir.join(mark))
    }

    /// What it is known by to other ledgers of the same host: its directory, or a name for a long one.
    pub fn name(&self) -> String {
        const LONGEST: usize = 200;
        let dir: PathBuf = self.dir.parent().unwrap_or(&self.dir).components().collect();
        let text = dir.display().to_string();
        if text.len() > LONGEST { hashed_name("dir-", &text) } else { text }
    }

    fn entries(&self) -> PathBuf {
        self.dir.join("attachments")
    }

    fn forget_other_boots(&self) -> Result<(), LedgerError> {
        let boot = netns::boot_id().map_err(failed("reading", Path::new(netns::BOOT_ID)))?;
        let path = self.dir.join("boot");
        if std::fs::read_to_string(&path).is_ok_and(|found| found == boot) {
            return Ok(());
        }
        for name in names(&self.dir)?.iter().filter(|name| !name.ends_with("lock")) {
            let stale = self.dir.join(name);
            let removed = match stale.is_dir() {
                true => std::fs::remove_dir_all(&stale),
                false => std::fs::remove_file(&stale),
            };
            removed.map_err(failed("removing", &stale))?;
        }
        std::fs::write(&path, boot).map_err(failed("writing", &path))
    }
}

/// Whether a shared link has users left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// It has none.
    None,
    /// It has some.
    Some,
}

impl From<LedgerError> for CniError {
    fn from(error: LedgerError) -> Self {
        Self::caused(ErrorCode::IO_FAILURE, "ledger of shared links", &error)
    }
}

/// The directory for the calling thread's network namespace, made if it is not there.
///
/// # Errors
/// [`LedgerError`].
pub(crate) fn host_dir(base: &Path) -> Result<PathBuf, LedgerError> {
    let host = netns::own().map_err(failed("reading", Path::new(netns::OWN)))?;
    let dir = base.join(host.ino.to_string());
    std::fs::create_dir_all(&dir).map_err(failed("creating", &dir))?;
    Ok(dir)
}

/// Opens and locks a file, made if it is not there; for root alone, because whoever may read it may hold it up.
///
/// # Errors
/// [`LedgerError`].
pub(crate) fn lock(path: &Path) -> Result<File, LedgerError> {
    let file = File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path);
    let file = file.map_err(failed("opening", path))?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(failed("locking", path)(errno.into())),
        }
    }
}

/// Names of containers, networks and interfaces hold no slash, and the first two no `@`.
fn file_name(tag: &str) -> String {
    tag.replacen('/', "@", 2)
}

fn owner_of(file_name: &str) -> Option<Owner> {
    Owner::of_tag(&file_name.replacen('@', "/", 2))
}

fn names(dir: &Path) -> Result<Vec<String>, LedgerError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("listing", dir)(error)),
    };
    let name = |entry: io::Result<std::fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(failed("listing", dir))
    };
    entries.map(name).collect()
}

fn unlink(path: &Path) -> Result<(), LedgerError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError { what, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(tag: &str) -> Owner {
        Owner::of_tag(tag).unwrap()
    }

    #[test]
    fn the_last_user_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let entry = Entry { shared: vec!["eth0.5".into()], ..Entry::default() };
        for tag in ["n/a/eth0", "n/b/eth@0"] {
            ledger.write(&owner(tag), &entry).unwrap();
            ledger.write(&owner(tag), &entry).unwrap();
        }
        assert_eq!(ledger.read(&owner("n/a/eth0")).unwrap(), Some(entry));
        assert_eq!(ledger.read(&owner("n/c/eth0")).unwrap(), None);
        assert_eq!(ledger.owners().unwrap().len(), 2);
        assert_eq!(ledger.release("eth0.5", &owner("n/a/eth0")).unwrap(), Users::Some);
        assert_eq!(ledger.release("eth0.5", &owner("n/a/eth0")).unwrap(), Users::Some);
        assert_eq!(ledger.release("eth0.5", &owner("n/b/eth@0")).unwrap(), Users::None);
        assert_eq!(ledger.users("eth0.5").unwrap(), Users::None);
        ledger.forget(&owner("n/a/eth0")).unwrap();
        ledger.forget(&owner("n/a/eth0")).unwrap();
        assert_eq!(ledger.owners().unwrap(), [owner("n/b/eth@0")]);
    }

    #[test]
    fn another_boot_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let entry = Entry { shared: vec!["eth0.5".into()], ..Entry::default() };
        ledger.write(&owner("n/a/eth0"), &entry).unwrap();
        ledger.mark("promiscuous.eth0").unwrap();
        std::fs::write(ledger.dir.join("boot"), "earlier").unwrap();
        drop(ledger);
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.owners().unwrap(), []);
        assert_eq!(ledger.users("eth0.5").unwrap(), Users::None);
        assert!(!ledger.is_marked("promiscuous.eth0"));
    }
}

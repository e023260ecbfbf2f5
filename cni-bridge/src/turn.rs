//! Calls of plugins that must not come in between each other: what is read and then changed in one piece is done under
//! a lock, and `repair` learns which attachments are on their way out.
//!
//! Locks and marks stand beside the [`crate::ledger`], one set for each network namespace that plays the host. A lock
//! goes with the process that has it. Nothing here knows what is done under it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::ledger::{LedgerError, failed, host_dir, lock};
use crate::owner::Owner;

/// What is done one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Publishing ports: whether one is free is in several maps.
    Ports,
    /// Elements that several owners need.
    Claims,
}

const PORTS: &str = "ports.lock";
const CLAIMS: &str = "claims.lock";
const DETACHED: &str = "detached.lock";

/// The directory with all files, so that no later call leaves more than the first one did.
fn prepared(base: &Path) -> Result<PathBuf, LedgerError> {
    let directory = host_dir(base)?;
    for name in [PORTS, CLAIMS, DETACHED] {
        let path = directory.join(name);
        let made = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        made.map_err(failed("making", &path))?;
    }
    Ok(directory)
}

/// A held lock.
#[derive(Debug)]
pub struct Turn {
    /// Closing it unlocks.
    _lock: File,
}

impl Turn {
    /// Waits for the calling thread's network namespace to be free of others with the subject.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn take(base: &Path, subject: Subject) -> Result<Self, LedgerError> {
        let name = match subject {
            Subject::Ports => PORTS,
            Subject::Claims => CLAIMS,
        };
        Ok(Self { _lock: lock(&prepared(base)?.join(name))? })
    }
}

/// The attachments that were detached lately, locked: who is not marked here stays attached as long as this is held.
///
/// Between the DEL of a plugin and the moment when a runtime removes its record of the attachment, only this tells
/// that the record is not to be believed any more. A mark is a number in a table of fixed size: another owner's may
/// take its place, much later than it is needed.
#[derive(Debug)]
pub struct Detached {
    path: PathBuf,
    file: File,
}

/// How many marks there are, each 8 bytes long.
const MARKS: u64 = 4096;
const NOBODY: u64 = 0;

impl Detached {
    /// Locks the marks, made if they are not there.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn lock(base: &Path) -> Result<Self, LedgerError> {
        let path = prepared(base)?.join(DETACHED);
        Ok(Self { file: lock(&path)?, path })
    }

    /// Marks the owner: it is being detached.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mark(&self, owner: &Owner) -> Result<(), LedgerError> {
        self.write(owner, owner.number())
    }

    /// Takes the owner's mark away: it is being attached.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn unmark(&self, owner: &Owner) -> Result<(), LedgerError> {
        if self.has(owner)? { self.write(owner, NOBODY) } else { Ok(()) }
    }

    /// Whether the owner is marked.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn has(&self, owner: &Owner) -> Result<bool, LedgerError> {
        let mut bytes = [0; 8];
        match self.file.read_exact_at(&mut bytes, place(owner)) {
            Ok(()) => Ok(u64::from_ne_bytes(bytes) == owner.number()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(failed("reading", &self.path)(error)),
        }
    }

    fn write(&self, owner: &Owner, number: u64) -> Result<(), LedgerError> {
        let written = self.file.write_all_at(&number.to_ne_bytes(), place(owner));
        written.map_err(failed("writing", &self.path))
    }
}

/// Where the owner's mark stands, in bytes from the beginning.
fn place(owner: &Owner) -> u64 {
    owner.number() % MARKS * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_the_owners() {
        let dir = tempfile::tempdir().unwrap();
        let owners: Vec<Owner> =
            (0..100).map(|number| Owner::of_tag(&format!("n/c{number}/eth0")).unwrap()).collect();
        let detached = Detached::lock(dir.path()).unwrap();
        for owner in &owners {
            assert!(!detached.has(owner).unwrap());
            detached.unmark(owner).unwrap();
            detached.mark(owner).unwrap();
            detached.mark(owner).unwrap();
            assert!(detached.has(owner).unwrap());
        }
        let path = detached.path.clone();
        drop(detached);
        assert!(std::fs::metadata(path).unwrap().len() <= MARKS * 8);
        let detached = Detached::lock(dir.path()).unwrap();
        let marked = |owner: &&Owner| detached.has(owner).unwrap();
        assert!(owners.iter().filter(marked).count() > 90, "few have the same place");
        detached.unmark(&owners[99]).unwrap();
        assert!(!detached.has(&owners[99]).unwrap());
    }

    #[test]
    fn one_after_another() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        std::fs::write(&count, "0").unwrap();
        let add = || {
            let _turn = Turn::take(dir.path(), Subject::Ports).unwrap();
            let number: u32 = std::fs::read_to_string(&count).unwrap().parse().unwrap();
            std::fs::write(&count, (number + 1).to_string()).unwrap();
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| (0..50).for_each(|_| add()))));
        });
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "200");
    }
}

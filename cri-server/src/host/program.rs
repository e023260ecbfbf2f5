//! Programs that run from a sealed copy in memory.
//!
//! crun and youki make such a copy of themselves at each start, so that no container can write into their file, and
//! then start once more. Run from a copy that is there already, they start at once, and the sealing, which the kernel
//! refuses now and then on a busy node, cannot fail a pod. The daemon makes the copies, monitors run them; a file that
//! changes is copied anew, and a copy of another file than the present one is not run.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};

use super::fs::read_bounded;
use super::oci;

/// Largest program that is copied, bytes.
const LIMIT: u64 = 16 << 20;

/// How often the kernel is asked to seal; it waits for about 150 ms itself each time before it says EBUSY.
const SEALINGS: usize = 8;

/// What tells a file from the one that is put in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    /// Of the file that is at `path` now.
    pub fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|metadata| Self::from(&metadata))
    }
}

impl From<&std::fs::Metadata> for FileIdentity {
    fn from(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A sealed copy of a program.
#[derive(Debug)]
pub struct ProgramCopy {
    fd: OwnedFd,
    original: FileIdentity,
}

impl ProgramCopy {
    /// A copy that somebody else has made of `original`.
    pub fn received(fd: OwnedFd, original: FileIdentity) -> Self {
        Self { fd, original }
    }

    /// The file that it was made from.
    pub fn original(&self) -> &FileIdentity {
        &self.original
    }

    /// A descriptor of it to be sent.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.fd.as_fd().try_clone_to_owned()
    }

    /// Where this process and its children execute it, if it is still what `path` has.
    pub fn of(&self, path: &Path) -> Option<PathBuf> {
        let current = FileIdentity::of(path).is_ok_and(|identity| identity == self.original);
        current.then(|| self.path())
    }

    /// Where this process and its children execute it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    fn make(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let original = FileIdentity::from(&file.metadata()?);
        let bytes = read_bounded(&file, LIMIT)?;
        let name = path.file_name().unwrap_or_default();
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut copy = File::from(rustix::fs::memfd_create(name, flags)?);
        copy.write_all(&bytes)?;
        seal(&copy)?;
        if FileIdentity::from(&file.metadata()?) != original {
            return Err(io::Error::other("it changed while it was copied"));
        }
        Ok(Self { fd: copy.into(), original })
    }
}

/// Seals a whole file in memory. Pages that the kernel itself still holds for a moment keep it from that.
fn seal(file: &File) -> io::Result<()> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let mut outcome = rustix::fs::fcntl_add_seals(file, seals);
    for _ in 1..SEALINGS {
        if outcome != Err(rustix::io::Errno::BUSY) {
            break;
        }
        outcome = rustix::fs::fcntl_add_seals(file, seals);
    }
    Ok(outcome?)
}

/// Copies of the programs that gain by it.
#[derive(Debug, Default)]
pub struct ProgramCopies(Mutex<HashMap<PathBuf, Kept>>);

#[derive(Debug)]
struct Kept {
    original: FileIdentity,
    /// None where the program does not gain, or cannot be run from memory here.
    copy: Option<Arc<ProgramCopy>>,
}

impl ProgramCopies {
    /// The copy of the program at `path` as that is now, none where it is run from its file. Blocks.
    pub fn get(&self, path: &Path) -> Option<Arc<ProgramCopy>> {
        let original = FileIdentity::of(path).ok()?;
        let known =
            self.lock().get(path).filter(|kept| kept.original == original).map(|kept| kept.copy.clone());
        if let Some(copy) = known {
            return copy;
        }
        let copy = useful_copy(path).map(Arc::new);
        self.lock().insert(path.to_owned(), Kept { original, copy: copy.clone() });
        copy
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A copy that was seen to run.
fn useful_copy(path: &Path) -> Option<ProgramCopy> {
    match ProgramCopy::make(path) {
        Ok(copy) => oci::copies_itself(&copy.path()).then_some(copy),
        Err(error) => {
            tracing::info!(program = %path.display(), %error, "cannot be copied into memory");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn install(path: &Path, text: &str) {
        let new = path.with_extension("new");
        std::fs::write(&new, format!("#!/bin/sh\necho {text}\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    #[test]
    fn a_copy_is_of_the_file_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        install(&path, "one");
        let copy = ProgramCopy::make(&path).unwrap();
        assert_eq!(std::fs::read(copy.of(&path).unwrap()).unwrap(), std::fs::read(&path).unwrap());
        assert!(std::fs::write(copy.path(), "changed").is_err(), "the copy can be written");
        install(&path, "two");
        assert_eq!(copy.of(&path), None);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(copy.of(&path), None);
    }

    #[test]
    fn only_what_gains_is_copied_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copies) = (dir.path().join("program"), ProgramCopies::default());
        assert!(copies.get(&path).is_none(), "nothing is there");
        install(&path, "another runtime");
        assert!(copies.get(&path).is_none());
        let Some(crun) =
            ["/usr/bin/crun", "/usr/local/bin/crun"].map(Path::new).into_iter().find(|p| p.exists())
        else {
            assert!(std::env::var_os("E2E_REQUIRE").is_none_or(|v| v != "1"), "crun is not installed");
            eprintln!("SKIPPED: crun is not installed");
            return;
        };
        std::fs::copy(crun, &path).unwrap();
        let (one, two) = (copies.get(&path).unwrap(), copies.get(&path).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        std::fs::copy(crun, dir.path().join("upgrade")).unwrap();
        std::fs::rename(dir.path().join("upgrade"), &path).unwrap();
        assert!(!Arc::ptr_eq(&one, &copies.get(&path).unwrap()));
    }
}

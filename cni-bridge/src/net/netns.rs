//! Network namespaces by path.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::sysctl;

/// `f_type` of the file system that namespaces live in.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// The calling thread's own.
pub const OWN: &str = "/proc/thread-self/ns/net";

/// Where the kernel says which boot this is.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which namespace it is, whatever path leads to it. Of one boot; a namespace that is gone may hand it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Device of the file system that namespaces live in.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
}

/// Which namespace the calling thread is in.
///
/// # Errors
/// Of reading `/proc`.
pub fn own() -> io::Result<Identity> {
    std::fs::metadata(OWN).map(|found| Identity { dev: found.dev(), ino: found.ino() })
}

/// Which boot this is.
///
/// # Errors
/// Of reading `/proc`.
pub fn boot_id() -> io::Result<String> {
    // 36 characters and a line end, in one piece.
    let mut bytes = [0; 64];
    let length = File::open(BOOT_ID)?.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).trim().to_owned())
}

/// An open network namespace; stays alive while this is held.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
    /// Of its kernel parameters, from one stay to the next.
    parameters: RefCell<sysctl::Held>,
}

/// Why a path is no usable network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// Nothing is there, or a plain file that a namespace used to be mounted on.
    #[error("network namespace {0} does not exist")]
    Gone(PathBuf),
    /// A namespace of another kind.
    #[error("{0} is not a network namespace")]
    OtherKind(PathBuf),
    /// Opening or entering failed.
    #[error("entering network namespace {path}")]
    Failed {
        /// The namespace's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl NetNs {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// [`NetNsError::Gone`] where no namespace is there any more; [`NetNsError::Failed`].
    pub fn open(path: &Path) -> Result<Self, NetNsError> {
        let failed = |source| NetNsError::Failed { path: path.to_owned(), source };
        // A device or a FIFO under that name must not block or be disturbed: look before opening.
        let kind = rustix::fs::statfs(path).map(|statfs| statfs.f_type);
        match kind {
            Ok(NSFS_MAGIC) => {}
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => return Err(NetNsError::Gone(path.to_owned())),
            Err(errno) => return Err(failed(errno.into())),
        }
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => NetNsError::Gone(path.to_owned()),
            _ => failed(error),
        })?;
        Ok(Self { file, path: path.to_owned(), parameters: RefCell::new(sysctl::Held::of_pod()) })
    }

    /// Whether it is the namespace that this process runs in.
    ///
    /// # Errors
    /// [`NetNsError::Failed`].
    pub fn is_own(&self) -> Result<bool, NetNsError> {
        let failed = |source| NetNsError::Failed { path: self.path.clone(), source };
        Ok(own().map_err(failed)? == self.identity()?)
    }

    /// Which namespace it is.
    ///
    /// # Errors
    /// [`NetNsError::Failed`].
    pub fn identity(&self) -> Result<Identity, NetNsError> {
        let failed = |source| NetNsError::Failed { path: self.path.clone(), source };
        self.file.metadata().map(|found| Identity { dev: found.dev(), ino: found.ino() }).map_err(failed)
    }

    /// Runs `work` inside; the calling thread is back in its own namespace afterwards.
    ///
    /// # Errors
    /// [`NetNsError::OtherKind`], [`NetNsError::Failed`].
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetNsError> {
        let failed = |source| NetNsError::Failed { path: self.path.clone(), source };
        let home = File::open(OWN).map_err(failed)?;
        match enter(&self.file) {
            Ok(()) => {}
            Err(Errno::INVAL) => return Err(NetNsError::OtherKind(self.path.clone())),
            Err(errno) => return Err(failed(errno.into())),
        }
        let at_home = sysctl::hold(self.parameters.take());
        let outcome = catch_unwind(AssertUnwindSafe(work));
        enter(&home)
            .expect("a namespace that we were in, held open, with the privilege that just let us leave it");
        self.parameters.replace(sysctl::hold(at_home));
        outcome.map_err(|panic| resume_unwind(panic))
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor's number, for netlink attributes; valid while this lives.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn enter(netns: &File) -> Result<(), Errno> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cni-1");
        std::fs::write(&file, "").unwrap();
        let gone = |path: &Path| matches!(NetNs::open(path), Err(NetNsError::Gone(_)));
        assert!(gone(&file));
        assert!(gone(&file.join("below")));
        assert!(gone(&dir.path().join("absent")));
        assert!(gone(dir.path()));
        let own = NetNs::open(Path::new("/proc/self/ns/net")).unwrap();
        assert!(own.is_own().unwrap());
        let other = NetNs::open(Path::new("/proc/self/ns/uts")).unwrap();
        assert!(!other.is_own().unwrap());
    }
}

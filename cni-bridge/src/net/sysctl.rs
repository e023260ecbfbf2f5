//! Kernel parameters under `/proc/sys/net` of the calling thread's network namespace.
//!
//! The directories below it have one name and as many faces as there are namespaces, which the kernel goes through one
//! by one at each lookup: a millisecond with a thousand pods. So they are held open, and those of a pod are looked up in
//! an instance of proc of their own, where nobody else's were looked up before.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::error::NetError;

/// What is held open of one namespace.
#[derive(Debug, Default)]
pub(super) struct Held {
    instance: Instance,
    /// Such as `ipv4`.
    directories: BTreeMap<String, OwnedFd>,
}

/// Where the directories are looked up.
#[derive(Debug, Default)]
enum Instance {
    /// In `/proc`.
    #[default]
    Common,
    /// In one that is mounted nowhere, once something is looked up.
    Own,
    /// In this one.
    Mounted(OwnedFd),
}

thread_local! {
    /// Those of the namespace that the thread is in.
    static HELD: RefCell<Held> = const { RefCell::new(Held::common()) };
}

/// Sets `key`, given as a path below `/proc/sys/net` such as `ipv4/ip_forward`.
///
/// # Errors
/// [`NetError::File`]; its source is `NotFound` where the kernel or the interface lacks the key.
pub fn set(key: &str, value: &str) -> Result<(), NetError> {
    let written = open(key, OFlags::WRONLY).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| NetError::File { what: "writing", path: path(key), source })
}

/// As [`set`], but a key that does not exist (IPv6 turned off) is fine.
///
/// # Errors
/// [`NetError::File`].
pub fn set_if_present(key: &str, value: &str) -> Result<(), NetError> {
    match set(key, value) {
        Err(NetError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Keeps what others announce at `link` from changing this host's IPv6 routes and addresses: pods are behind it. To be
/// called before it comes up. Without IPv6 there is nothing to do.
///
/// # Errors
/// [`NetError::File`].
pub fn own_routes(link: &str) -> Result<(), NetError> {
    for key in ["accept_ra", "autoconf"] {
        let key = format!("ipv6/conf/{link}/{key}");
        match ensure(&key, "0") {
            Err(NetError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// As [`set`], without touching what has the value already: writing may restart what hangs on it.
///
/// # Errors
/// [`NetError::File`].
pub fn ensure(key: &str, value: &str) -> Result<(), NetError> {
    if get(key)? == value { Ok(()) } else { set(key, value) }
}

/// The value of `key` without its line end.
///
/// # Errors
/// [`NetError::File`].
pub fn get(key: &str) -> Result<String, NetError> {
    let mut text = String::new();
    match open(key, OFlags::RDONLY).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(NetError::File { what: "reading", path: path(key), source }),
    }
}

/// Exchanges what is held open, for a thread that goes into another namespace.
pub(super) fn hold(directories: Held) -> Held {
    HELD.replace(directories)
}

fn open(key: &str, flags: OFlags) -> io::Result<File> {
    let Some((top, rest)) = key.split_once('/') else {
        return Ok(rustix::fs::open(path(key), flags | OFlags::CLOEXEC, Mode::empty())?.into());
    };
    HELD.with_borrow_mut(|held| match held.open((top, rest), flags) {
        // Who confines this process may know parameters by their common path alone.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && held.is_mounted() => {
            *held = Held::common();
            held.open((top, rest), flags)
        }
        other => other,
    })
}

impl Held {
    fn open(&mut self, (top, rest): (&str, &str), flags: OFlags) -> io::Result<File> {
        if !self.directories.contains_key(top) {
            let directory = self.instance.open(top)?;
            self.directories.insert(top.to_owned(), directory);
        }
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directories[top], rest, flags, Mode::empty())?.into())
    }

    fn is_mounted(&self) -> bool {
        matches!(self.instance, Instance::Mounted(_))
    }

    const fn common() -> Self {
        Self { instance: Instance::Common, directories: BTreeMap::new() }
    }

    /// Nothing yet, of a namespace that is one of many.
    pub(super) const fn of_pod() -> Self {
        Self { instance: Instance::Own, directories: BTreeMap::new() }
    }
}

impl Instance {
    fn open(&mut self, top: &str) -> io::Result<OwnedFd> {
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if matches!(self, Self::Own) {
            // Where it cannot be had, the common one serves as well, if not as fast.
            *self = mount().map_or(Self::Common, Self::Mounted);
        }
        Ok(match self {
            Self::Mounted(proc) => {
                rustix::fs::openat(&*proc, Path::new("sys/net").join(top), directory, Mode::empty())?
            }
            Self::Common | Self::Own => rustix::fs::openat(CWD, path(top), directory, Mode::empty())?,
        })
    }
}

/// An instance of proc that goes with its descriptor.
fn mount() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

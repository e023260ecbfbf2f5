//! Kernel parameters under `/proc/sys/net` of the calling thread's network namespace.
//!
//! The directories below it have one name and as many faces as there are namespaces, which the kernel goes through one
//! by one at each lookup: a millisecond with a thousand pods. So they are held open.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};

use super::error::NetError;

/// Directories of one namespace, such as `ipv4`, held open.
pub(super) type Held = BTreeMap<String, OwnedFd>;

thread_local! {
    /// Those of the namespace that the thread is in.
    static HELD: RefCell<Held> = const { RefCell::new(BTreeMap::new()) };
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
    HELD.with_borrow_mut(|held| {
        if !held.contains_key(top) {
            let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            held.insert(top.to_owned(), rustix::fs::openat(CWD, path(top), directory, Mode::empty())?);
        }
        let file = rustix::fs::openat(&held[top], rest, flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(file.into())
    })
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

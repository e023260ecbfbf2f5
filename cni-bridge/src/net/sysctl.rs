//! Kernel parameters under `/proc/sys/net` of the calling thread's network namespace.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use super::error::NetError;

/// Sets `key`, given as a path below `/proc/sys/net` such as `ipv4/ip_forward`.
///
/// # Errors
/// [`NetError::File`]; its source is `NotFound` where the kernel or the interface lacks the key.
pub fn set(key: &str, value: &str) -> Result<(), NetError> {
    let path = path(key);
    let written =
        File::options().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| NetError::File { what: "writing", path, source })
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
    let path = path(key);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(NetError::File { what: "reading", path, source }),
    }
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

//! Kernel parameters under `/proc/sys/net` of the calling thread's network namespace.

use std::io;
use std::path::PathBuf;

use super::error::NetError;

/// Sets `key`, given as a path below `/proc/sys/net` such as `ipv4/ip_forward`; does not write what is set already.
///
/// # Errors
/// [`NetError::File`]; its source is `NotFound` where the kernel or the interface lacks the key.
pub fn set(key: &str, value: &str) -> Result<(), NetError> {
    if get(key)? == value {
        return Ok(());
    }
    let path = path(key);
    std::fs::write(&path, value).map_err(|source| NetError::File { what: "writing", path, source })
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

//! Records on disk are the truth; memory is a cache of them.
//!
//! - [`record`]: the file format: one checksummed JSON document, replaced atomically
//! - [`sandbox`], [`container`]: what the records hold
//! - [`index`]: the cache, looked up by id or unique prefix

pub mod container;
pub mod index;
pub mod message;
pub mod record;
pub mod sandbox;

/// Identity of this boot of the node; records from another boot own no kernel object any more.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string())
}

/// Nanoseconds since the Unix epoch.
pub fn now() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

//! The exit record: what is known of a container that ended, complete without any other file.
//!
//! On disk: one JSON object whose last member is `checksum`, the SHA-256 of the same object without that member.
//! The bytes are checked, not a re-encoding, so that a record of a newer version still proves itself.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::id::{ContainerId, PodId};

/// How a container's main process ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Version of this format: [`RECORD_VERSION`].
    pub version: u32,
    /// The container.
    pub container_id: ContainerId,
    /// Its pod sandbox.
    pub pod_id: PodId,
    /// What the daemon gave along at create.
    pub identity: serde_json::Value,
    /// When the OCI runtime had made it. Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// When it was started, if it was. Nanoseconds since the epoch.
    pub started_at_ns: Option<i64>,
    /// When it ended. Nanoseconds since the epoch; not before `started_at_ns`.
    pub finished_at_ns: i64,
    /// Exit code; 128 + signal when killed.
    pub exit_code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The kernel killed one of its processes for want of memory, and it did not end with 0.
    pub oom_killed: bool,
    /// How many of its processes the kernel killed for want of memory.
    pub oom_kills: u64,
    /// The boot in which it ran.
    pub boot_id: String,
}

/// Version of [`ExitRecord`].
pub const RECORD_VERSION: u32 = 1;

/// Why bytes are not an exit record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Torn, empty or damaged.
    #[error("the exit record has no valid checksum")]
    Checksum,
    /// Whole, but not understood.
    #[error("reading the exit record")]
    Format(#[source] serde_json::Error),
    /// Whole, and written by a newer version.
    #[error("the exit record has version {0}, this program knows {RECORD_VERSION}")]
    Version(u32),
}

const MARK: &[u8] = b",\"checksum\":\"";
const TAIL: &[u8] = b"\"}\n";
const DIGITS: usize = 64;

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl ExitRecord {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("all keys are strings");
        let digest = hex_digest(&bytes);
        bytes.pop();
        bytes.extend_from_slice(MARK);
        bytes.extend_from_slice(digest.as_bytes());
        bytes.extend_from_slice(TAIL);
        bytes
    }

    /// Reads the bytes of the file.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let rest = bytes.strip_suffix(TAIL).ok_or(RecordError::Checksum)?;
        let at = rest.len().checked_sub(DIGITS).ok_or(RecordError::Checksum)?;
        let (rest, digest) = rest.split_at(at);
        let mut object = rest.strip_suffix(MARK).ok_or(RecordError::Checksum)?.to_vec();
        object.push(b'}');
        if hex_digest(&object).as_bytes() != digest {
            return Err(RecordError::Checksum);
        }
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(&object).map_err(RecordError::Format)?;
        if version != RECORD_VERSION {
            return Err(RecordError::Version(version));
        }
        serde_json::from_slice(&object).map_err(RecordError::Format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ExitRecord {
        ExitRecord {
            version: RECORD_VERSION,
            container_id: ContainerId::generate(),
            pod_id: PodId::generate(),
            identity: serde_json::json!({"name": "a\"}\n", "attempt": 3}),
            created_at_ns: 1,
            started_at_ns: None,
            finished_at_ns: 2,
            exit_code: 137,
            signal: Some(9),
            oom_killed: true,
            oom_kills: 1,
            boot_id: "b".into(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = record().encode();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["exit_code"], 137);
        let record = ExitRecord::decode(&bytes).unwrap();
        assert_eq!(record.encode(), bytes);
    }

    #[test]
    fn every_torn_or_flipped_record_is_noticed() {
        let bytes = record().encode();
        for length in 0..bytes.len() {
            assert!(ExitRecord::decode(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            assert!(ExitRecord::decode(&flipped).is_err(), "{at}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let newer = ExitRecord { version: 2, ..record() };
        assert!(matches!(ExitRecord::decode(&newer.encode()), Err(RecordError::Version(2))));
    }
}

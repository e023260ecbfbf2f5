//! The file format of a record: a header line with version and checksum, then one JSON document.
//!
//! A record is replaced by rename, without a sync: the death of any process leaves the old or the new one. After a
//! power cut it may be torn; the checksum says so, and the record is quarantined instead of being believed.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::host::fs::{Durability, write_atomic};

const MAGIC: &str = "berth-record";
const VERSION: u32 = 1;
const LIMIT: u64 = 32 << 20;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("record {path}")]
    Io {
        /// The record's file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is torn, damaged or not a record.
    #[error("record {path} is damaged: {reason}")]
    Damaged {
        /// The record's file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written by a version that this one does not know.
    #[error("record {path} has format {found}, newer than {VERSION}")]
    Newer {
        /// The record's file.
        path: String,
        /// The format's number.
        found: u32,
    },
}

/// Writes `body` as the record at `path`.
pub fn write(path: &Path, body: &impl Serialize, durability: Durability) -> Result<(), RecordError> {
    let json = serde_json::to_string(body).map_err(|error| RecordError::Damaged {
        path: path.display().to_string(),
        reason: error.to_string(),
    })?;
    let text = format!("{MAGIC} {VERSION} {}\n{json}\n", checksum(&json));
    write_atomic(path, text.as_bytes(), 0o600, durability)
        .map_err(|source| RecordError::Io { path: path.display().to_string(), source })
}

/// Reads the record at `path`; `None` when there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let name = path.display().to_string();
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Io { path: name, source }),
    };
    let bytes = crate::host::fs::read_bounded(file, LIMIT)
        .map_err(|source| RecordError::Io { path: name.clone(), source })?;
    parse(&name, &bytes).map(Some)
}

fn parse<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, RecordError> {
    let damaged = |reason: &str| RecordError::Damaged { path: path.into(), reason: reason.into() };
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("not UTF-8"))?;
    let (header, body) = text.split_once('\n').ok_or_else(|| damaged("no header"))?;
    let mut words = header.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(damaged("no header"));
    }
    let version = words.next().and_then(|w| w.parse().ok()).ok_or_else(|| damaged("no format number"))?;
    if version > VERSION {
        return Err(RecordError::Newer { path: path.into(), found: version });
    }
    if version < VERSION {
        return Err(damaged("no such format number"));
    }
    let json = body.strip_suffix('\n').ok_or_else(|| damaged("cut short"))?;
    if words.next() != Some(checksum(json).as_str()) {
        return Err(damaged("wrong checksum"));
    }
    serde_json::from_str(json).map_err(|error| damaged(&error.to_string()))
}

fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        write(&path, &vec!["a", "b"], Durability::Cached).unwrap();
        let good = std::fs::read(&path).unwrap();
        assert_eq!(read::<Vec<String>>(&path).unwrap(), Some(vec!["a".to_string(), "b".to_string()]));
        for index in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[index] ^= 1 << bit;
                assert!(parse::<Vec<String>>("p", &bad).is_err(), "byte {index} bit {bit}");
            }
        }
        for length in 0..good.len() {
            assert!(parse::<Vec<String>>("p", &good[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn nothing_there_is_no_error() {
        assert!(read::<String>(Path::new("/nonexistent/record")).unwrap().is_none());
    }
}

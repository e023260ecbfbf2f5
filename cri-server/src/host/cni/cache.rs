//! Records of attachments on disk, in the format of libcni's cache (`cniCacheV1`), so that other tools read
//! them: `<directory>/results/<network>-<container id>-<interface>`.
//!
//! A record is written before the first plugin runs, and again with the result; it goes when DEL succeeded.
//! The key `dev.berth` marks the records of this runtime. Knows files, not plugins.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::chain::Target;
use super::error::CniError;
use crate::host::fs::{Durability, read_bounded, write_atomic};

const KIND: &str = "cniCacheV1";
const LIMIT: u64 = 8 << 20;

/// The directory of records.
#[derive(Debug)]
pub(super) struct Cache {
    results: PathBuf,
}

/// One attachment as libcni and Berth remember it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    kind: String,
    pub container_id: String,
    /// The configuration list that was used.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub config: Vec<u8>,
    pub if_name: String,
    pub network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cni_args: Vec<[String; 2]>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub capability_args: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Present in the records of this runtime only.
    #[serde(default, rename = "dev.berth", skip_serializing_if = "Option::is_none")]
    pub berth: Option<Origin>,
}

/// What Berth adds to libcni's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Origin {
    /// Version of this object.
    pub version: u32,
    pub state: State,
    /// The boot in which the attachment was made.
    pub boot_id: String,
    /// Device and inode of the network namespace; absent when it was none.
    #[serde(default)]
    pub netns_identity: Option<(u64, u64)>,
}

/// How far an attachment got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Plugins may have been called with ADD; there is no result.
    Adding,
    /// ADD finished.
    Attached,
}

/// A file of the directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub path: PathBuf,
    /// The record, or why it cannot be read.
    pub record: Result<Record, io::Error>,
}

impl Record {
    /// An attachment that is about to be made.
    pub fn intent(container_id: &str, if_name: &str, network: (&str, &[u8]), origin: Origin) -> Self {
        Self {
            kind: KIND.into(),
            container_id: container_id.into(),
            config: network.1.to_vec(),
            if_name: if_name.into(),
            network_name: network.0.into(),
            netns: String::new(),
            cni_args: Vec::new(),
            capability_args: Map::new(),
            result: None,
            berth: Some(origin),
        }
    }

    /// Notes the result of ADD.
    pub fn finish(&mut self, result: Value) {
        self.result = Some(result);
        if let Some(origin) = &mut self.berth {
            origin.state = State::Attached;
        }
    }

    /// What plugins are told about the container.
    pub fn target(&self) -> Target {
        Target {
            container_id: self.container_id.clone(),
            netns: self.netns.clone(),
            ifname: self.if_name.clone(),
            args: self.cni_args.clone(),
            capability_args: self.capability_args.clone(),
        }
    }
}

impl Cache {
    /// The records below libcni's cache directory `dir`. Removes what a killed writer left behind.
    pub fn new(dir: &Path) -> Self {
        let cache = Self { results: dir.join("results") };
        for name in cache.names().unwrap_or_default() {
            if name.starts_with('.') && name.ends_with(".new") {
                let _ = std::fs::remove_file(cache.results.join(name));
            }
        }
        cache
    }

    /// Where the record of an attachment is.
    pub fn path(&self, record: &Record) -> PathBuf {
        self.results.join(format!("{}-{}-{}", record.network_name, record.container_id, record.if_name))
    }

    /// Writes a record: safe against the death of the daemon. After a power cut its namespace is gone with it.
    pub fn write(&self, record: &Record) -> Result<(), CniError> {
        let path = self.path(record);
        let write = || {
            let bytes = serde_json::to_vec(record)?;
            match write_atomic(&path, &bytes, 0o600, Durability::Cached) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    make_private(&self.results)?;
                    write_atomic(&path, &bytes, 0o600, Durability::Cached)
                }
                other => other,
            }
        };
        write().map_err(|source| CniError::Record { action: "writing", path: path.clone(), source })
    }

    /// Removes a record; one that is gone is fine.
    pub fn remove(&self, path: &Path) -> Result<(), CniError> {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CniError::Record { action: "removing", path: path.to_path_buf(), source })
            }
            _ => Ok(()),
        }
    }

    /// All entries, or those whose names mention a container, in the order of their names.
    pub fn entries(&self, container_id: Option<&str>) -> Result<Vec<Entry>, CniError> {
        let mentioned = container_id.map(|id| format!("-{id}-"));
        let listing = self.names().map_err(|source| CniError::Record {
            action: "listing",
            path: self.results.clone(),
            source,
        })?;
        let mut entries = Vec::new();
        for name in listing {
            if name.starts_with('.') || mentioned.as_ref().is_some_and(|wanted| !name.contains(wanted)) {
                continue;
            }
            let path = self.results.join(name);
            match read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                record => entries.push(Entry { path, record }),
            }
        }
        Ok(entries)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let listing = match std::fs::read_dir(&self.results) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in listing {
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Network, container id and interface according to a file name: for records that cannot be read.
pub(super) fn parts(path: &Path) -> Option<(&str, &str, &str)> {
    let name = path.file_name()?.to_str()?;
    let is_id = |part: &&str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let (before, rest) = name.split_at(name.find(name.split('-').find(is_id)?)?);
    let (id, after) = rest.split_at(64);
    let (network, ifname) = (before.strip_suffix('-')?, after.strip_prefix('-')?);
    (!network.is_empty() && !ifname.is_empty()).then_some((network, id, ifname))
}

fn read(path: &Path) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(&read_bounded(std::fs::File::open(path)?, LIMIT)?)?;
    if record.kind != KIND {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("its kind is {:?}", record.kind)));
    }
    Ok(record)
}

fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record() -> Record {
        let origin =
            Origin { version: 1, state: State::Adding, boot_id: "b".into(), netns_identity: Some((4, 7)) };
        Record::intent(&"ab".repeat(32), "eth0", ("my-net", b"{}"), origin)
    }

    #[test]
    fn records_have_the_format_of_libcni() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(&dir.path().join("cni"));
        assert_eq!(cache.entries(None).unwrap().len(), 0);
        let mut record = record();
        record.netns = "/run/netns/x".into();
        record.cni_args = vec![["IgnoreUnknown".into(), "1".into()]];
        record.result = Some(json!({"cniVersion": "1.0.0"}));
        cache.write(&record).unwrap();
        let path = dir.path().join(format!("cni/results/my-net-{}-eth0", "ab".repeat(32)));
        let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let expect = json!({
            "kind": "cniCacheV1", "containerId": "ab".repeat(32), "config": "e30=", "ifName": "eth0",
            "networkName": "my-net", "netns": "/run/netns/x", "cniArgs": [["IgnoreUnknown", "1"]],
            "result": {"cniVersion": "1.0.0"},
            "dev.berth": {"version": 1, "state": "adding", "bootId": "b", "netnsIdentity": [4, 7]},
        });
        assert_eq!(written, expect);
        assert_eq!(cache.entries(Some(&"ab".repeat(32))).unwrap()[0].record.as_ref().unwrap(), &record);
        assert_eq!(cache.entries(Some(&"cd".repeat(32))).unwrap().len(), 0);
        cache.remove(&path).unwrap();
        cache.remove(&path).unwrap();
        assert_eq!(cache.entries(None).unwrap().len(), 0);
    }

    #[test]
    fn an_unreadable_record_is_known_by_its_name_and_a_torn_write_goes() {
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path().join("results");
        std::fs::create_dir(&results).unwrap();
        let id = "cd".repeat(32);
        for (name, text) in [
            (format!("my-net-{id}-eth0"), ""),
            (format!("x-{id}-eth0"), "{\"kind\":\"cniCacheV9\"}"),
            (format!(".my-net-{id}-eth1.new"), "{"),
        ] {
            std::fs::write(results.join(name), text).unwrap();
        }
        let entries = Cache::new(dir.path()).entries(None).unwrap();
        assert_eq!(entries.len(), 2);
        assert!(entries.iter().all(|entry| entry.record.is_err()));
        assert_eq!(parts(&entries[0].path), Some(("my-net", id.as_str(), "eth0")));
        assert_eq!(std::fs::read_dir(&results).unwrap().count(), 2);
    }
}

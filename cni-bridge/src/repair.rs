//! Making the packet filter's rules of living attachments again: after `nft flush ruleset`, or whatever else took them.
//!
//! What ought to be there is nowhere written down a second time: it follows from the records that runtimes keep for
//! DEL in libcni's form (`cniCacheV1`), which hold configuration, capabilities and result of each ADD. Only plugins
//! that are this program take part. Nothing is removed, and what is whole is not touched. An attachment whose DEL has
//! begun is left alone, although its record is still there.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proto::cni::args::CniArgs;
use proto::cni::conf::parse_map;
use proto::cni::plugin::OwnNetns;
use proto::cni::runtime::{Additions, plugin_input};
use proto::cni::{Attachment, CniError, ErrorCode, NetConf, NetConfList, Request};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::net::netns::{NetNs, NetNsError};
use crate::owner::Owner;
use crate::plugin::{self, keys};
use crate::turn::Detached;

const KIND: &str = "cniCacheV1";
/// The largest record that is read, in bytes.
const MAX_RECORD: u64 = 8 << 20;

/// A runtime's record of an attachment.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    kind: String,
    container_id: String,
    if_name: String,
    config: String,
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Option<Vec<[String; 2]>>,
    #[serde(default)]
    capability_args: Option<Map<String, Value>>,
    #[serde(default)]
    result: Option<Value>,
}

/// Why an attachment's rules are not what they should be.
#[derive(Debug, thiserror::Error)]
#[error("repairing the rules of {record}")]
pub struct RepairError {
    record: PathBuf,
    #[source]
    source: CniError,
}

/// Repairs what the records in `paths`, files or directories of them, tell of. `search` is CNI_PATH: plugins that it
/// leads to elsewhere than to this program are passed over. Records without a result or a living namespace, and files
/// that are no records, are passed over too.
pub fn repair(paths: &[PathBuf], search: &[PathBuf]) -> Vec<RepairError> {
    let mut failures = Vec::new();
    for path in paths {
        let files = match std::fs::read_dir(path) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(_) => vec![path.clone()],
        };
        for file in files {
            let outcome = repair_one(&file, search);
            failures.extend(outcome.err().map(|source| RepairError { record: file, source }));
        }
    }
    failures
}

fn repair_one(path: &Path, search: &[PathBuf]) -> Result<(), CniError> {
    let Some((bytes, record)) = read(path)? else { return Ok(()) };
    let Some(result) = record.result.as_ref().filter(|_| is_alive(&record.netns)) else { return Ok(()) };
    let config = STANDARD.decode(&record.config);
    let config = config.map_err(|error| CniError::caused(ErrorCode::DECODING_FAILURE, "config", &error))?;
    let list = NetConfList::parse(&config)?;
    let args: Vec<String> =
        record.cni_args.iter().flatten().map(|[key, value]| format!("{key}={value}")).collect();
    let args: CniArgs = args.join(";").parse()?;
    let attachment =
        Attachment { container_id: record.container_id.parse()?, ifname: record.if_name.parse()? };
    let mut outcomes = Vec::new();
    for (index, entry) in list.plugins.iter().enumerate() {
        let Some(plugin) = plugin::named(&entry.plugin).filter(|_| is_ours(&entry.plugin, search)) else {
            continue;
        };
        let additions = Additions {
            capability_args: record.capability_args.as_ref(),
            prev_result: Some(result),
            valid_attachments: None,
        };
        let conf = NetConf::new(parse_map(&plugin_input(&list, index, additions)?)?)?;
        let request =
            Request { conf, args: args.clone(), path: search.to_vec(), own_netns: OwnNetns::Allowed };
        // Whoever detaches marks the attachment first, and waits for this: either it finds what was made here, or this
        // finds the mark.
        let owner = Owner::new(&request.conf.name, &attachment)?;
        let detached = Detached::lock(&keys::state_dir(&request)?)?;
        if detached.has(&owner)? || !std::fs::read(path).is_ok_and(|found| found == bytes) {
            return plugin::collect(outcomes);
        }
        let outcome = plugin.repair(&request, &attachment);
        outcomes.push(
            outcome.map_err(|error| CniError { msg: format!("{}: {}", entry.plugin, error.msg), ..error }),
        );
    }
    plugin::collect(outcomes)
}

/// The record in a file, with the file's bytes; `None` where the file is gone, not finished, or something else.
fn read(path: &Path) -> Result<Option<(Vec<u8>, Record)>, CniError> {
    let failed = |error| CniError::caused(ErrorCode::IO_FAILURE, "reading the record", &error);
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() <= MAX_RECORD => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let record = serde_json::from_slice::<Record>(&bytes).ok().filter(|record| record.kind == KIND);
    Ok(record.map(|record| (bytes, record)))
}

/// Whether the attachment's namespace is still there; rules for a dead pod would send traffic to its successor.
fn is_alive(netns: &str) -> bool {
    !netns.is_empty() && !matches!(NetNs::open(Path::new(netns)), Err(NetNsError::Gone(_)))
}

/// Whether a runtime that looks in `search` for a plugin finds this program.
fn is_ours(plugin: &str, search: &[PathBuf]) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let found = search.iter().map(|dir| dir.join(plugin)).find(|program| program.is_file());
    found.is_some_and(|program| identity(&program) == identity(Path::new("/proc/self/exe")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_living_record_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            let failures = repair(&[file], &[]);
            assert!(failures.is_empty(), "{name}: {failures:?}");
        };
        let record = |kind: &str, netns: &str, config: &str, result: Value| {
            json!({"kind": kind, "containerId": "c", "ifName": "eth0", "config": config, "netns": netns,
                "result": result})
            .to_string()
        };
        let own = "/proc/self/ns/net";
        check("empty", "");
        check("rubbish", "x");
        check("other kind", &record("x", own, "!", json!({})));
        check("unfinished", &record(KIND, own, "!", Value::Null));
        check("dead", &record(KIND, "/absent", "!", json!({})));
        check("no namespace", &record(KIND, "", "!", json!({})));
        let foreign = STANDARD.encode(r#"{"name":"n","plugins":[{"type":"portmap"}]}"#);
        check("foreign plugin", &record(KIND, own, &foreign, json!({})));
        assert!(repair(&[dir.path().join("absent")], &[]).is_empty());
        let file = dir.path().join("torn");
        std::fs::write(&file, record(KIND, own, "!", json!({}))).unwrap();
        let failures = repair(&[dir.path().to_owned()], &[]);
        let shown: Vec<String> = failures.iter().map(ToString::to_string).collect();
        assert_eq!(shown, [format!("repairing the rules of {}", file.display())]);
    }
}

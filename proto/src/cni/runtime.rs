//! The caller's side, without running anything: what a plugin is given and what its answer means.
//!
//! A runtime runs the plugins of a list in order for ADD and CHECK, in reverse for DEL, and hands each the result
//! of the one before (ADD) or the final result (CHECK, DEL).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::args::{Attachment, Verb};
use super::conf::{NetConfList, PluginConf};
use super::error::{CniError, ErrorCode};
use super::result::CniResult;
use super::version::SpecVersion;

/// What a call adds to a plugin's object.
#[derive(Debug, Clone, Copy, Default)]
pub struct Additions<'a> {
    /// Capability values by name; a plugin gets those that it declares.
    pub capability_args: Option<&'a Map<String, Value>>,
    /// The result to hand on, in the list's version.
    pub prev_result: Option<&'a Value>,
    /// For GC: what must stay.
    pub valid_attachments: Option<&'a [Attachment]>,
}

/// What plugin number `index` of `list` reads on standard input (SPEC "Deriving execution configuration").
///
/// # Errors
/// [`ErrorCode::INTERNAL`] when the list has no such plugin.
pub fn plugin_input(list: &NetConfList, index: usize, additions: Additions<'_>) -> Result<Vec<u8>, CniError> {
    let plugin = list.plugins.get(index).ok_or_else(|| {
        CniError::new(ErrorCode::INTERNAL, format!("network {} has no plugin number {index}", list.name))
    })?;
    let mut map = plugin.map().clone();
    map.remove("capabilities");
    map.remove("cniVersions");
    map.insert("cniVersion".to_owned(), Value::from(list.version.as_str()));
    map.insert("name".to_owned(), Value::from(list.name.as_str()));
    let runtime_config = runtime_config(plugin, additions.capability_args);
    if !runtime_config.is_empty() {
        map.insert("runtimeConfig".to_owned(), Value::Object(runtime_config));
    }
    if let Some(result) = additions.prev_result {
        map.insert("prevResult".to_owned(), result.clone());
    }
    if let Some(valid) = additions.valid_attachments {
        let valid = serde_json::to_value(valid).expect("attachments are strings");
        map.insert("cni.dev/valid-attachments".to_owned(), valid.clone());
        map.insert("cni.dev/attachments".to_owned(), valid);
    }
    Ok(serde_json::to_vec(&map).expect("a JSON object always encodes"))
}

/// The environment of a call, beside what the runtime inherits.
#[derive(Debug, Clone, Copy)]
pub struct Environment<'a> {
    /// CNI_COMMAND.
    pub verb: Verb,
    /// CNI_CONTAINERID and CNI_IFNAME; `None` for GC, STATUS and VERSION.
    pub attachment: Option<&'a Attachment>,
    /// CNI_NETNS; `None` where it is gone.
    pub netns: Option<&'a Path>,
    /// CNI_ARGS, already `KEY=VALUE;…`.
    pub args: &'a str,
    /// CNI_PATH.
    pub path: &'a [PathBuf],
}

impl Environment<'_> {
    /// The variables. All are always there, so that none is inherited by accident.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let path: Vec<String> = self.path.iter().map(|dir| dir.display().to_string()).collect();
        let attachment = |part: fn(&Attachment) -> String| self.attachment.map(part).unwrap_or_default();
        vec![
            ("CNI_COMMAND", self.verb.as_str().to_owned()),
            ("CNI_CONTAINERID", attachment(|a| a.container_id.to_string())),
            ("CNI_IFNAME", attachment(|a| a.ifname.to_string())),
            ("CNI_NETNS", self.netns.map(|path| path.display().to_string()).unwrap_or_default()),
            ("CNI_ARGS", self.args.to_owned()),
            ("CNI_PATH", path.join(":")),
        ]
    }
}

/// What a plugin left when it exited.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    /// The `type` of the plugin, for messages.
    pub plugin: &'a str,
    /// Exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: &'a [u8],
    /// Standard error.
    pub stderr: &'a [u8],
}

impl Output<'_> {
    /// The result of ADD: as JSON to hand on, and read.
    ///
    /// # Errors
    /// The plugin's own error; [`ErrorCode::DECODING_FAILURE`] when it succeeded without a result.
    pub fn result(&self, version: SpecVersion) -> Result<(Value, CniResult), CniError> {
        self.success()?;
        let decode = |error: serde_json::Error| {
            let msg = format!("plugin {}: decoding its result", self.plugin);
            CniError::caused(ErrorCode::DECODING_FAILURE, msg, &error)
        };
        let value: Value = serde_json::from_slice(self.stdout).map_err(decode)?;
        let result = CniResult::parse(&value, version)
            .map_err(|error| CniError { msg: format!("plugin {}: {}", self.plugin, error.msg), ..error })?;
        // Hand on in the list's version, whatever version the plugin chose to answer in.
        Ok((result.to_json(version)?, result))
    }

    /// Whether the plugin succeeded, where no result is expected.
    ///
    /// # Errors
    /// The plugin's own error object, or else one made from what it wrote to standard error.
    pub fn success(&self) -> Result<(), CniError> {
        if self.status == Some(0) {
            return Ok(());
        }
        if let Some(error) = CniError::parse(self.stdout) {
            return Err(CniError { msg: format!("plugin {}: {}", self.plugin, error.msg), ..error });
        }
        let end = match self.status {
            Some(status) => format!("plugin {} exited with status {status}", self.plugin),
            None => format!("plugin {} was killed", self.plugin),
        };
        let text = if self.stderr.is_empty() { self.stdout } else { self.stderr };
        let details = String::from_utf8_lossy(&text[..text.len().min(4096)]).trim().to_owned();
        Err(CniError { code: ErrorCode::INTERNAL, msg: end, details })
    }
}

/// The versions that a plugin's answer to VERSION lists; unknown ones are left out.
///
/// # Errors
/// [`ErrorCode::DECODING_FAILURE`] when it is no such answer.
pub fn parse_versions(stdout: &[u8]) -> Result<Vec<SpecVersion>, CniError> {
    let bad = || CniError::new(ErrorCode::DECODING_FAILURE, "decoding the answer to VERSION");
    let value: Value = serde_json::from_slice(stdout).map_err(|_| bad())?;
    let list = value.get("supportedVersions").and_then(Value::as_array).ok_or_else(bad)?;
    Ok(list.iter().filter_map(Value::as_str).filter_map(|text| text.parse().ok()).collect())
}

fn runtime_config(plugin: &PluginConf, args: Option<&Map<String, Value>>) -> Map<String, Value> {
    let wanted = args.into_iter().flatten().filter(|(name, _)| plugin.has_capability(name));
    wanted.map(|(name, value)| (name.clone(), value.clone())).collect()
}

//! A specification file: its form, and what it may say. Unknown fields are refused, so that nothing that a vendor
//! wants is left out in silence.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer};

use super::name::{check_device, check_kind};

/// Versions of the specification whose files are read.
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// One file: devices of one kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    cdi_version: String,
    pub kind: String,
    /// For other tools.
    #[serde(default, rename = "annotations", deserialize_with = "or_default")]
    _annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    /// For every container that has one of the devices.
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub name: String,
    #[serde(default, rename = "annotations", deserialize_with = "or_default")]
    _annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
}

/// What changes in a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ContainerEdits {
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(default, deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "or_default")]
    pub hooks: Vec<Hook>,
    pub intel_rdt: Option<IntelRdt>,
    #[serde(default, alias = "additionalGIDs", deserialize_with = "or_default")]
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceNode {
    pub path: String,
    pub host_path: Option<String>,
    pub r#type: Option<NodeType>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    #[serde(default, deserialize_with = "mode")]
    pub file_mode: Option<u32>,
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// Type of a device node; `u` is an old word for `c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum NodeType {
    #[serde(rename = "c", alias = "u")]
    Character,
    #[serde(rename = "b")]
    Block,
    #[serde(rename = "p")]
    Fifo,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub r#type: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub hook_name: Stage,
    pub path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    pub timeout: Option<u32>,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Stage {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IntelRdt {
    #[serde(rename = "closID")]
    pub clos_id: Option<String>,
    #[serde(rename = "l3CacheSchema")]
    pub l3_cache_schema: Option<String>,
    #[serde(rename = "memBwSchema")]
    pub mem_bw_schema: Option<String>,
    #[serde(rename = "enableCMT", default)]
    pub enable_cmt: bool,
    #[serde(rename = "enableMBM", default)]
    pub enable_mbm: bool,
}

impl Document {
    /// Checks what the form cannot say. The error is for people.
    pub fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.as_str();
        if !VERSIONS.contains(&version) {
            return Err(format!("cdiVersion: expected one of {}, got {version:?}", VERSIONS.join(", ")));
        }
        check_kind(&self.kind).map_err(|why| format!("kind {:?}: {why}", self.kind))?;
        self.container_edits.check()?;
        if self.devices.is_empty() {
            return Err("devices: there is none".into());
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            let fault = |why: &str| format!("device {:?}: {why}", device.name);
            check_device(&device.name).map_err(fault)?;
            if !names.insert(&device.name) {
                return Err(fault("it is there twice"));
            }
            if device.container_edits == ContainerEdits::default() {
                return Err(fault("it changes nothing"));
            }
            device.container_edits.check().map_err(|why| fault(&why))?;
        }
        Ok(())
    }
}

impl ContainerEdits {
    fn check(&self) -> Result<(), String> {
        check_env(&self.env)?;
        for node in &self.device_nodes {
            check_path("deviceNodes.path", &node.path)?;
            node.host_path.iter().try_for_each(|path| check_path("deviceNodes.hostPath", path))?;
            let permissions = node.permissions.as_deref().unwrap_or_default();
            if permissions != "none" && !permissions.bytes().all(|letter| b"rwm".contains(&letter)) {
                return Err(format!(
                    "deviceNodes.permissions: expected letters r, w and m or none, got {permissions:?}"
                ));
            }
        }
        for mount in &self.mounts {
            check_path("mounts.containerPath", &mount.container_path)?;
            if mount.host_path.is_empty() {
                return Err("mounts.hostPath: it is empty".into());
            }
        }
        for hook in &self.hooks {
            check_path("hooks.path", &hook.path)?;
            check_env(&hook.env)?;
        }
        let clos_id = self.intel_rdt.as_ref().and_then(|rdt| rdt.clos_id.as_deref()).unwrap_or_default();
        let is_file_name =
            clos_id.len() < 4096 && ![".", ".."].contains(&clos_id) && !clos_id.contains(['/', '\n']);
        match clos_id == "/" || is_file_name {
            true => Ok(()),
            false => Err(format!("intelRdt.closID: expected a file name, got {clos_id:?}")),
        }
    }
}

fn check_env(env: &[String]) -> Result<(), String> {
    let unusable = |entry: &&String| entry.find('=').is_none_or(|at| at == 0) || entry.contains('\0');
    match env.iter().find(unusable) {
        None => Ok(()),
        Some(entry) => Err(format!("env: expected NAME=value, got {entry:?}")),
    }
}

fn check_path(field: &str, path: &str) -> Result<(), String> {
    match path.starts_with('/') && !path.contains('\0') {
        true => Ok(()),
        false => Err(format!("{field}: expected an absolute path, got {path:?}")),
    }
}

/// A key without a value is a key that is not there.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// Permission bits: a number, or the digits of an octal one, as YAML 1.1 has them.
fn mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Mode {
        Number(u32),
        Digits(String),
    }
    match Option::deserialize(from)? {
        None => Ok(None),
        Some(Mode::Number(bits)) => Ok(Some(bits)),
        Some(Mode::Digits(text)) => {
            let digits = text.strip_prefix("0o").unwrap_or(&text);
            let wrong =
                |_| serde::de::Error::custom(format!("fileMode: expected an octal number, got {text:?}"));
            u32::from_str_radix(digits, 8).map(Some).map_err(wrong)
        }
    }
}

//! What only devices of vendors ask for: programs of the node, classes of cache and memory bandwidth.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Programs of the node by the moment in the container's life at which they run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Hooks {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

impl Hooks {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A program that the OCI runtime runs with the container's state on its standard input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute, on the host.
    pub path: PathBuf,
    /// Command line, the program's name first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// Intel's Resource Director Technology.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IntelRdt {
    /// Name of the class.
    #[serde(rename = "closID", default, skip_serializing_if = "Option::is_none")]
    pub clos_id: Option<String>,
    /// Share of the cache.
    #[serde(rename = "l3CacheSchema", default, skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema: Option<String>,
    /// Share of the memory's bandwidth.
    #[serde(rename = "memBwSchema", default, skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema: Option<String>,
    /// Monitoring of the cache.
    #[serde(rename = "enableCMT", default, skip_serializing_if = "std::ops::Not::not")]
    pub enable_cmt: bool,
    /// Monitoring of the bandwidth.
    #[serde(rename = "enableMBM", default, skip_serializing_if = "std::ops::Not::not")]
    pub enable_mbm: bool,
}

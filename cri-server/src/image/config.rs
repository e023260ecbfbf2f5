//! The part of an OCI image configuration (config.md) that a runtime acts on. Pure.
//!
//! Everything in it is chosen by the image's author. Labels are data for people: nothing decides by them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer};

use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::platform::Platform;

/// A parsed image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// Architecture in Go's names; empty in some hand-made images.
    #[serde(default)]
    pub architecture: String,
    /// Operating system; empty in some hand-made images.
    #[serde(default)]
    pub os: String,
    /// Variant of the architecture.
    #[serde(default)]
    pub variant: Option<String>,
    /// When the image was made, RFC 3339, as the image says.
    #[serde(default)]
    pub created: Option<String>,
    /// Defaults for containers.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ContainerDefaults,
    /// The layers, bottom to top.
    pub rootfs: RootFs,
}

/// Defaults that an image gives to its containers; names as in the specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerDefaults {
    /// `user`, `uid`, `user:group` or `uid:gid`, unchecked.
    #[serde(default, deserialize_with = "null_is_default")]
    pub user: String,
    /// `NAME=value` pairs.
    #[serde(default, deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// First part of the command line.
    #[serde(default, deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Second part of the command line, replaced by a container's arguments.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// Working directory, unchecked.
    #[serde(default, deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// Signal that asks the container to stop, by name or number.
    #[serde(default, deserialize_with = "null_is_default")]
    pub stop_signal: String,
    /// Paths that want a volume, unchecked.
    #[serde(default, deserialize_with = "key_set")]
    pub volumes: BTreeSet<String>,
    /// Ports, `80/tcp`.
    #[serde(default, deserialize_with = "key_set")]
    pub exposed_ports: BTreeSet<String>,
    /// Labels.
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

/// The layers of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Digests of the uncompressed layer archives, bottom to top.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Parses the configuration of an image that has `layers` layers.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self, ImageError> {
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|e| ImageError::corrupt("the configuration is malformed", e))?;
        let listed = config.rootfs.diff_ids.len();
        if listed != layers {
            return Err(ImageError::invalid(format!(
                "the configuration lists {listed} layers, the manifest {layers}"
            )));
        }
        Ok(config)
    }

    /// Whether containers of the image can run on `platform`; an image that names none is believed to.
    pub fn runs_on(&self, platform: &Platform) -> bool {
        let or = |own: &str, default: &str| if own.is_empty() { default.into() } else { own.into() };
        let own = Platform {
            os: or(&self.os, &platform.os),
            architecture: or(&self.architecture, &platform.architecture),
            variant: self.variant.clone(),
        };
        platform.rank(&own).is_some()
    }

    /// Chain ids of the layers, bottom to top (config.md, "Layer ChainID").
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain = Vec::with_capacity(self.rootfs.diff_ids.len());
        for diff_id in &self.rootfs.diff_ids {
            let id = match chain.last() {
                None => *diff_id,
                Some(parent) => chained(parent, diff_id),
            };
            chain.push(id);
        }
        chain
    }
}

fn chained(parent: &Digest, diff_id: &Digest) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(format!("{parent} {diff_id}").as_bytes());
    hasher.finish()
}

/// Tools write `null` for what is empty.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A set written as an object whose values say nothing.
fn key_set<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
    let keys: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(from)?;
    Ok(keys.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_are_empty() {
        let bytes =
            br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],"Volumes":{"/v":{}},
            "ExposedPorts":null,"Labels":null,"User":"1:2"},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = ImageConfig::parse(bytes, 0).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.user, "1:2");
        assert!(config.config.volumes.contains("/v"));
        assert!(config.config.env.is_empty());
        assert!(ImageConfig::parse(br#"{"rootfs":{},"config":null}"#, 0).is_ok());
    }

    #[test]
    fn hostile_configurations_are_refused() {
        let check = |bytes: &[u8]| {
            assert!(matches!(ImageConfig::parse(bytes, 1), Err(ImageError::InvalidImage { .. })))
        };
        check(b"");
        check(br#"{"rootfs":{"diff_ids":[]}}"#);
        check(br#"{"rootfs":{"diff_ids":["sha256:../../x"]}}"#);
        check(br#"{"os":"linux","os":"linux","rootfs":{"diff_ids":[]}}"#);
        check("[".repeat(1_000_000).as_bytes());
    }

    #[test]
    fn chain_ids_depend_on_all_layers_below() {
        let diff_ids = vec![Digest::of(b"a"), Digest::of(b"b")];
        let config = ImageConfig { rootfs: RootFs { diff_ids: diff_ids.clone() }, ..ImageConfig::default() };
        let chain = config.chain_ids();
        assert_eq!(chain[0], diff_ids[0]);
        assert_eq!(chain[1], Digest::of(format!("{} {}", diff_ids[0], diff_ids[1]).as_bytes()));
    }

    #[test]
    fn an_image_of_another_platform_does_not_run() {
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let check = |os: &str, architecture: &str, expect| {
            let config =
                ImageConfig { os: os.into(), architecture: architecture.into(), ..ImageConfig::default() };
            assert_eq!(config.runs_on(&host), expect, "{os}/{architecture}");
        };
        check("linux", "amd64", true);
        check("", "", true);
        check("linux", "arm64", false);
        check("windows", "amd64", false);
    }
}

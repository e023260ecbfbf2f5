//! An image as others see it, and the names of layers.

use std::fmt;
use std::str::FromStr;

use crate::image::config::ImageConfig;
use crate::image::digest::{Digest, InvalidDigest};

/// An image of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the configuration: the same image has the same id wherever it comes from.
    pub id: Digest,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest` of what was pulled, an index or a manifest, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of the configuration and of the layers as they were delivered, compressed; a layer counts once.
    pub size: u64,
    /// The parsed configuration.
    pub config: ImageConfig,
    /// The layers, bottom to top; one may occur twice.
    pub layers: Vec<LayerKey>,
    /// Whether the node's configuration protects it from collection.
    pub pinned: bool,
    pub(crate) manifest: Option<Digest>,
}

/// Name of a layer's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LayerKey {
    /// As unpacked, the same for every image: by diff-id.
    Diff(Digest),
    /// Fitted to its parents: by chain id.
    Chain(Digest),
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerKey::Diff(digest) => write!(f, "diff-{}", digest.hex()),
            LayerKey::Chain(digest) => write!(f, "chain-{}", digest.hex()),
        }
    }
}

impl FromStr for LayerKey {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        match text.split_once('-') {
            Some(("diff", hex)) => Digest::from_hex(hex).map(LayerKey::Diff),
            Some(("chain", hex)) => Digest::from_hex(hex).map(LayerKey::Chain),
            _ => Err(InvalidDigest::Malformed(text.chars().take(100).collect())),
        }
    }
}

impl TryFrom<String> for LayerKey {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<LayerKey> for String {
    fn from(key: LayerKey) -> String {
        key.to_string()
    }
}

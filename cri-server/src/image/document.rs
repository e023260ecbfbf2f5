//! Manifests and indexes: parsing and the checks that keep one document from being read as two. Pure.
//!
//! Both the OCI types (manifest.md, image-index.md) and Docker's schema 2 are understood.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::ImageError;
use super::platform::Platform;

/// Largest manifest or index, in bytes.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Largest image configuration, in bytes.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most layers of an image: what overlayfs stacks.
pub const MAX_LAYERS: usize = 500;
/// Most entries of an index.
const MAX_MANIFESTS: usize = 10_000;

/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an uncompressed OCI layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of a Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a Docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// What a registry delivers for a tag or digest.
#[derive(Debug, Clone)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Images by platform.
    Index(Vec<Descriptor>),
}

/// The blobs of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The image configuration; its digest is the image's id.
    pub config: Descriptor,
    /// The layers, bottom to top.
    pub layers: Vec<Descriptor>,
}

/// A reference to content (descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Other places to get it from; refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Index,
}

impl Document {
    /// Parses a document that was delivered, or is listed, as `outer` (empty where nothing was said).
    pub fn parse(bytes: &[u8], outer: &str) -> Result<Self, ImageError> {
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(ImageError::invalid(format!("the manifest is larger than {MAX_DOCUMENT} bytes")));
        }
        if outer.starts_with("application/vnd.docker.distribution.manifest.v1") {
            return Err(ImageError::invalid("Docker schema 1 manifests are not supported"));
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|e| ImageError::corrupt("the manifest is malformed", e))?;
        if raw.schema_version != 2 {
            return Err(ImageError::invalid(format!(
                "schemaVersion {} is not supported",
                raw.schema_version
            )));
        }
        let kind = raw.kind()?;
        raw.check_media_types(kind, outer)?;
        match kind {
            Kind::Manifest => raw.into_manifest().map(Document::Manifest),
            Kind::Index => raw.into_index().map(Document::Index),
        }
    }
}

impl Raw {
    /// By its members, so that a document is never both.
    fn kind(&self) -> Result<Kind, ImageError> {
        match (self.manifests.is_some(), self.layers.is_some() || self.config.is_some()) {
            (true, true) => Err(ImageError::invalid("the document is both a manifest and an index")),
            (true, false) => Ok(Kind::Index),
            (false, true) => Ok(Kind::Manifest),
            (false, false) => Err(ImageError::invalid("the document is neither a manifest nor an index")),
        }
    }

    fn check_media_types(&self, kind: Kind, outer: &str) -> Result<(), ImageError> {
        let inner = self.media_type.as_deref().unwrap_or_default();
        for media_type in [inner, outer] {
            if document_kind(media_type).is_some_and(|named| named != kind) {
                return Err(ImageError::invalid(format!("the content is not what {media_type} says")));
            }
        }
        if !inner.is_empty() && document_kind(inner).is_none() {
            return Err(ImageError::invalid(format!("unknown media type {:?}", clip(inner))));
        }
        if !inner.is_empty() && document_kind(outer).is_some() && inner != outer {
            return Err(ImageError::invalid(format!("media type is {inner} inside and {outer} outside")));
        }
        Ok(())
    }

    fn into_manifest(self) -> Result<Manifest, ImageError> {
        let config = self.config.ok_or_else(|| ImageError::invalid("the manifest has no configuration"))?;
        let layers = self.layers.ok_or_else(|| ImageError::invalid("the manifest has no layers"))?;
        if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            let what = format!("{:?} is not the configuration of an image", clip(&config.media_type));
            return Err(ImageError::invalid(what));
        }
        if config.size > MAX_CONFIG {
            return Err(ImageError::invalid(format!("the configuration is larger than {MAX_CONFIG} bytes")));
        }
        if layers.len() > MAX_LAYERS {
            return Err(ImageError::invalid(format!("the image has more than {MAX_LAYERS} layers")));
        }
        layers.iter().chain([&config]).try_for_each(check_urls)?;
        layers.iter().try_for_each(check_layer)?;
        Ok(Manifest { config, layers })
    }

    fn into_index(self) -> Result<Vec<Descriptor>, ImageError> {
        let manifests = self.manifests.unwrap_or_default();
        if manifests.len() > MAX_MANIFESTS {
            return Err(ImageError::invalid(format!("the index has more than {MAX_MANIFESTS} entries")));
        }
        Ok(manifests)
    }
}

/// Whether `media_type` names a manifest or an index.
fn document_kind(media_type: &str) -> Option<Kind> {
    match media_type {
        OCI_MANIFEST | DOCKER_MANIFEST => Some(Kind::Manifest),
        OCI_INDEX | DOCKER_INDEX => Some(Kind::Index),
        _ => None,
    }
}

fn check_urls(blob: &Descriptor) -> Result<(), ImageError> {
    if blob.urls.is_empty() {
        return Ok(());
    }
    Err(ImageError::invalid(format!("{} is to be fetched from a foreign URL", blob.digest.short())))
}

fn check_layer(layer: &Descriptor) -> Result<(), ImageError> {
    let known = [OCI_LAYER, DOCKER_LAYER].iter().any(|prefix| {
        let suffix = layer.media_type.strip_prefix(prefix);
        suffix.is_some_and(|suffix| matches!(suffix, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
    });
    if known {
        return Ok(());
    }
    Err(ImageError::invalid(format!("{:?} is not a layer of an image", clip(&layer.media_type))))
}

/// The entries of an index that run on `platform`, best first; entries without a platform come last.
pub fn choose<'a>(manifests: &'a [Descriptor], platform: &Platform) -> Vec<&'a Descriptor> {
    let rank = |descriptor: &Descriptor| match &descriptor.platform {
        None => Some(0),
        Some(candidate) => platform.rank(candidate),
    };
    let mut ranked: Vec<_> = manifests
        .iter()
        .filter(|d| d.media_type.is_empty() || document_kind(&d.media_type).is_some())
        .filter_map(|d| rank(d).map(|rank| (rank, d)))
        .collect();
    ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    ranked.into_iter().map(|(_, descriptor)| descriptor).collect()
}

fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str, more: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{HEX}","size":1{more}}}"#)
    }

    fn manifest(media_type: &str, config: &str, layer: &str, more: &str) -> String {
        let (config, layer) = (descriptor(config, ""), descriptor(layer, more));
        format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{config},"layers":[{layer}]}}"#)
    }

    #[test]
    fn both_families_of_media_types_are_understood() {
        let check = |text: String, outer: &str| {
            assert!(matches!(Document::parse(text.as_bytes(), outer), Ok(Document::Manifest(_))), "{text}");
        };
        check(
            manifest(OCI_MANIFEST, OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd", ""),
            OCI_MANIFEST,
        );
        check(manifest(OCI_MANIFEST, OCI_CONFIG, OCI_LAYER, ""), "application/json");
        check(
            manifest(DOCKER_MANIFEST, DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar.gzip", ""),
            DOCKER_MANIFEST,
        );
    }

    #[test]
    fn ambiguous_and_foreign_documents_are_refused() {
        let check = |text: String, outer: &str, expect: &str| {
            let error = Document::parse(text.as_bytes(), outer).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}: {text}");
        };
        let good = manifest(OCI_MANIFEST, OCI_CONFIG, OCI_LAYER, "");
        let both = good.replacen('{', r#"{"manifests":[],"#, 1);
        check(both, "", "both a manifest and an index");
        check(good.clone(), OCI_INDEX, "not what");
        check(good.clone(), DOCKER_MANIFEST, "inside and");
        check(good.replace(OCI_MANIFEST, "text/plain"), "", "unknown media type");
        check(good.replace("\"schemaVersion\":2", "\"schemaVersion\":1"), "", "schemaVersion 1");
        check(good.replace(HEX, "sha256:../../x"), "", "malformed");
        check(good.replacen('{', r#"{"layers":[],"#, 1), "", "malformed");
        check(good.replace("\"size\":1", "\"size\":-1"), "", "malformed");
        check(format!(r#"{{"schemaVersion":2,"x":{}"#, "[".repeat(100_000)), "", "malformed");
        check("{\"schemaVersion\":2}".into(), "", "neither");
        check(
            manifest(OCI_MANIFEST, "application/vnd.cncf.helm.config.v1+json", OCI_LAYER, ""),
            "",
            "configuration",
        );
        check(manifest(OCI_MANIFEST, OCI_CONFIG, "text/plain", ""), "", "not a layer");
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        check(manifest(DOCKER_MANIFEST, DOCKER_CONFIG, foreign, ""), "", "not a layer");
        check(manifest(OCI_MANIFEST, OCI_CONFIG, OCI_LAYER, r#","urls":["http://h/x"]"#), "", "foreign URL");
        check("{}".into(), "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1");
    }

    #[test]
    fn the_platform_is_chosen_from_an_index() {
        let entry = |platform: &str| descriptor(OCI_MANIFEST, &format!(r#","platform":{platform}"#));
        let entries = [
            descriptor(OCI_MANIFEST, ""),
            entry(r#"{"os":"linux","architecture":"arm64"}"#),
            entry(r#"{"os":"linux","architecture":"amd64","variant":"v3"}"#),
            entry(r#"{"os":"linux","architecture":"amd64"}"#),
            entry(r#"{"os":"unknown","architecture":"unknown"}"#),
        ];
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let Document::Index(manifests) = Document::parse(text.as_bytes(), OCI_INDEX).unwrap() else {
            panic!()
        };
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let chosen = choose(&manifests, &host);
        assert_eq!(chosen, [&manifests[3], &manifests[0]]);
    }

    #[test]
    fn an_index_of_too_many_entries_is_refused() {
        let entries = vec![descriptor(OCI_MANIFEST, ""); MAX_MANIFESTS + 1].join(",");
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
        assert!(Document::parse(text.as_bytes(), "").is_err());
    }
}

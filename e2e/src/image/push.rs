//! From layers to a tagged image in a registry: configuration, manifest, index, upload.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::layer::{Compression, Layer, digest};
use crate::http::Origin;

/// Which family of media types an image is described with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OCI image manifest.
    Oci,
    /// Docker schema 2.
    Docker,
}

impl Format {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Docker, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Docker, Compression::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

/// An image in memory.
#[derive(Clone, Debug)]
pub struct Image {
    /// Media types.
    pub format: Format,
    /// Lowest layer first.
    pub layers: Vec<Layer>,
    /// The `config` object of the image configuration (Env, Cmd, User, …).
    pub config: Value,
}

/// A manifest as it is in a registry.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Media type.
    pub media_type: String,
    /// Exact bytes.
    pub bytes: Vec<u8>,
}

impl Manifest {
    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.bytes)
    }
}

impl Image {
    /// The image configuration's bytes; their digest is the image's id.
    pub fn configuration(&self) -> Result<Vec<u8>> {
        let created = "2023-11-14T22:13:20Z";
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let history: Vec<Value> = diff_ids.iter().map(|_| json!({"created": created})).collect();
        Ok(serde_json::to_vec(&json!({
            "created": created,
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        }))?)
    }

    /// The manifest of the image.
    pub fn manifest(&self) -> Result<Manifest> {
        let config = self.configuration()?;
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| descriptor(self.format.layer(layer.compression), &layer.blob))
            .collect();
        let bytes = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": self.format.manifest(),
            "config": descriptor(self.format.config(), &config),
            "layers": layers,
        }))?;
        Ok(Manifest { media_type: self.format.manifest().to_owned(), bytes })
    }

    /// Uploads layers and configuration, then the manifest under each tag. Returns the manifest's digest.
    pub fn push(&self, registry: &Origin, repository: &str, tags: &[&str]) -> Result<String> {
        for layer in &self.layers {
            push_blob(registry, repository, &layer.blob)?;
        }
        push_blob(registry, repository, &self.configuration()?)?;
        let manifest = self.manifest()?;
        for tag in tags {
            push_manifest(registry, repository, tag, &manifest)?;
        }
        Ok(manifest.digest())
    }
}

/// An index over manifests that are in the repository already, by platform (`os/architecture`).
pub fn index(format: Format, manifests: &[(&str, &Manifest)]) -> Result<Manifest> {
    let entries = manifests
        .iter()
        .map(|(platform, manifest)| {
            let (os, architecture) = platform.split_once('/').context("platform is os/architecture")?;
            let mut entry = descriptor(&manifest.media_type, &manifest.bytes);
            entry["platform"] = json!({"os": os, "architecture": architecture});
            Ok(entry)
        })
        .collect::<Result<Vec<Value>>>()?;
    let bytes = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": format.index(), "manifests": entries,
    }))?;
    Ok(Manifest { media_type: format.index().to_owned(), bytes })
}

/// Puts a manifest or index under a tag or digest.
pub fn push_manifest(registry: &Origin, repository: &str, tag: &str, manifest: &Manifest) -> Result<()> {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let answer = registry.request("PUT", &path, Some((&manifest.media_type, &manifest.bytes)))?;
    let text = String::from_utf8_lossy(&answer.body);
    ensure!(answer.status == 201, "push {repository}:{tag}: status {}: {text}", answer.status);
    Ok(())
}

fn push_blob(registry: &Origin, repository: &str, blob: &[u8]) -> Result<()> {
    let digest = digest(blob);
    let known = registry.request("HEAD", &format!("/v2/{repository}/blobs/{digest}"), None)?;
    if known.status == 200 {
        return Ok(());
    }
    let begun = registry.request("POST", &format!("/v2/{repository}/blobs/uploads/"), None)?;
    let location = begun.header("location").context("an upload has no location")?;
    let path = location.split_once("/v2/").map(|(_, rest)| format!("/v2/{rest}")).context("odd location")?;
    let sign = if path.contains('?') { '&' } else { '?' };
    let content = Some(("application/octet-stream", blob));
    let done = registry.request("PUT", &format!("{path}{sign}digest={digest}"), content)?;
    ensure!(done.status == 201, "push a blob of {repository}: status {}", done.status);
    Ok(())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

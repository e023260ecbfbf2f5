//! From a tag or digest to the manifest of this platform, and to its configuration.

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;

use super::failure::Failure;
use super::pace::Pace;
use super::session::{Ask, Session};
use crate::image::digest::Digest;
use crate::image::document::{Descriptor, Document, MAX_CONFIG, MAX_DOCUMENT, Manifest, choose};
use crate::image::error::ImageError;
use crate::image::platform::Platform;
use crate::image::reference::Selector;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// Indexes of indexes.
const MAX_DEPTH: usize = 4;

/// What a reference stands for on this platform.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Digest of what the reference names: a manifest or an index.
    pub digest: Digest,
    /// The manifest as delivered.
    pub bytes: Bytes,
    /// The manifest, parsed.
    pub manifest: Manifest,
}

impl Session {
    /// Finds the manifest that the reference stands for on `platform`.
    pub async fn resolve(&self, platform: &Platform) -> Result<Resolved, ImageError> {
        let what = self.reference().to_string();
        let (path, expected) = match self.reference().selector() {
            Selector::Tag(tag) => (format!("manifests/{tag}"), None),
            Selector::Digest(digest) => (format!("manifests/{digest}"), Some(*digest)),
        };
        let ask = Ask { path, accept: Some(ACCEPT), from: 0 };
        let (mut bytes, media_type) = self.small(&ask, MAX_DOCUMENT, expected, &what).await?;
        let digest = Digest::of(&bytes);
        let mut document = Document::parse(&bytes, &media_type)?;
        for _ in 0..MAX_DEPTH {
            let index = match document {
                Document::Manifest(manifest) => return Ok(Resolved { digest, bytes, manifest }),
                Document::Index(index) => index,
            };
            let chosen = choose(&index, platform).into_iter().next();
            let chosen =
                chosen.ok_or_else(|| ImageError::NotFound { what: format!("{what} for {platform}") })?;
            bytes = self.child(chosen).await?;
            document = Document::parse(&bytes, &chosen.media_type)?;
        }
        Err(ImageError::invalid("an index is nested too deeply"))
    }

    /// The configuration of an image.
    pub async fn config_blob(&self, config: &Descriptor) -> Result<Bytes, ImageError> {
        let what = format!("the configuration of {}", self.reference());
        let ask = Ask { path: format!("blobs/{}", config.digest), ..Ask::default() };
        let (bytes, _) = self.small(&ask, config.size.min(MAX_CONFIG), Some(config.digest), &what).await?;
        check_size(&bytes, config)?;
        Ok(bytes)
    }

    async fn child(&self, child: &Descriptor) -> Result<Bytes, ImageError> {
        let what = format!("{}@{}", self.reference().name(), child.digest);
        let ask = Ask { path: format!("manifests/{}", child.digest), accept: Some(ACCEPT), from: 0 };
        let (bytes, media_type) = self.small(&ask, MAX_DOCUMENT, Some(child.digest), &what).await?;
        check_size(&bytes, child)?;
        Document::parse(&bytes, &media_type)?;
        Ok(bytes)
    }

    /// Something that is kept in memory, checked against its digest, with its media type. Each endpoint is asked in
    /// turn; the error is that of the last, the registry itself, unless only a mirror could be reached and has no such
    /// thing.
    async fn small(
        &self,
        ask: &Ask,
        limit: u64,
        expected: Option<Digest>,
        what: &str,
    ) -> Result<(Bytes, String), ImageError> {
        let (mut endpoint, mut attempt) = (0, 1);
        let mut mirror_lacks_it = false;
        loop {
            let failure = match self.read_checked(endpoint, ask, limit, expected).await {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            tracing::debug!(endpoint, attempt, ?failure, what, "cannot get");
            mirror_lacks_it |= matches!(failure, Failure::NotFound);
            if failure.may_pass() && attempt < self.attempts(endpoint) {
                tokio::time::sleep(self.pause(attempt, &failure)).await;
                attempt += 1;
            } else if endpoint + 1 < self.endpoint_count() {
                (endpoint, attempt) = (endpoint + 1, 1);
            } else if mirror_lacks_it && failure.may_pass() {
                return Err(Failure::NotFound.into_error(what));
            } else {
                return Err(failure.into_error(what));
            }
        }
    }

    async fn read_checked(
        &self,
        endpoint: usize,
        ask: &Ask,
        limit: u64,
        expected: Option<Digest>,
    ) -> Result<(Bytes, String), Failure> {
        let (bytes, media_type) = self.read_small(endpoint, ask, limit).await?;
        let got = Digest::of(&bytes);
        match expected {
            Some(expected) if expected != got => {
                let text = format!("the registry delivered {got} for {expected}");
                Err(Failure::Invalid(ImageError::invalid(text)))
            }
            _ => Ok((bytes, media_type)),
        }
    }

    async fn read_small(&self, endpoint: usize, ask: &Ask, limit: u64) -> Result<(Bytes, String), Failure> {
        let mut response = self.send(endpoint, ask).await?;
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type =
            media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_string();
        let mut bytes = Vec::new();
        let mut pace = Pace::new(self.stall());
        while let Some(piece) = pace.next(response.chunk()).await? {
            pace.count(piece.len());
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                let text = format!("{} is larger than {limit} bytes", ask.path);
                return Err(Failure::Invalid(ImageError::invalid(text)));
            }
        }
        Ok((bytes.into(), media_type))
    }
}

fn check_size(bytes: &Bytes, descriptor: &Descriptor) -> Result<(), ImageError> {
    if bytes.len() as u64 == descriptor.size {
        return Ok(());
    }
    let (digest, size) = (descriptor.digest.short(), descriptor.size);
    Err(ImageError::invalid(format!("{digest} has {} bytes, not {size}", bytes.len())))
}

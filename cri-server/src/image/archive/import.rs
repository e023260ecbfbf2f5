//! Reads images from an archive.
//!
//! The archive may come from a pipe and may be compressed: it is put into an unnamed file first, since its parts are
//! not in the order in which they are needed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use super::index::{Index, Member};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::document::{Descriptor, Document, MAX_CONFIG, MAX_DOCUMENT, MAX_LAYERS, OCI_INDEX, choose};
use crate::image::error::ImageError;
use crate::image::install::{LayerSource, install};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::image::store::{Image, ImageStore, NewImage};
use crate::image::unpack::{BlobSink, ExpectedBlob};

const CHUNK: usize = 256 << 10;
/// Largest archive, uncompressed.
const MAX_ARCHIVE: u64 = 256 << 30;
/// Most images of one archive.
const MAX_IMAGES: usize = 1000;
/// Indexes of indexes.
const MAX_DEPTH: usize = 4;
/// Name that containerd and Docker give to an image of a layout.
const FULL_NAME: &str = "io.containerd.image.name";
/// Tag, or by some tools the full name, of an image of a layout (annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// One image of an archive.
struct Found {
    id: Digest,
    config_bytes: Vec<u8>,
    config: ImageConfig,
    manifest: Option<Vec<u8>>,
    layers: Vec<(Member, ExpectedBlob)>,
    tags: Vec<Reference>,
    digests: Vec<Reference>,
}

/// Imports all images of an OCI layout or Docker archive that run on this node's platform.
pub async fn import(
    store: &ImageStore,
    archive: impl Read + Send + 'static,
) -> Result<Vec<Arc<Image>>, ImageError> {
    let read = store.blocking("reading an archive", move |inner| {
        let index = Index::read(spool(archive, inner.config.limits.window_log, inner.root())?)?;
        let found = find(&index, &inner.config.platform)?;
        Ok((Arc::new(index), found))
    });
    let (index, found) = read.await?;
    let mut images = Vec::with_capacity(found.len());
    for image in found {
        images.push(add(store, &index, image).await?);
    }
    Ok(images)
}

/// Copies an archive, inflated, into a file without a name.
fn spool(archive: impl Read + 'static, window_log: u32, directory: &Path) -> Result<File, ImageError> {
    let fail = |e| ImageError::io("copying an archive", e);
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600)).map_err(|e| fail(e.into()))?;
    let mut file = File::from(file);
    let mut archive = inflated(archive, window_log).map_err(|e| ImageError::io("reading an archive", e))?;
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let count = match archive.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return Err(ImageError::corrupt("the archive cannot be read", error)),
        };
        total += count as u64;
        if total > MAX_ARCHIVE {
            return Err(ImageError::invalid(format!("the archive is larger than {MAX_ARCHIVE} bytes")));
        }
        file.write_all(&buffer[..count]).map_err(fail)?;
    }
    file.rewind().map_err(fail)?;
    Ok(file)
}

fn inflated(mut archive: impl Read + 'static, window_log: u32) -> std::io::Result<Box<dyn Read>> {
    let mut magic = Vec::new();
    archive.by_ref().take(4).read_to_end(&mut magic)?;
    let gzip = magic.starts_with(&[0x1f, 0x8b]);
    let zstd = magic == [0x28, 0xb5, 0x2f, 0xfd];
    let whole = BufReader::with_capacity(CHUNK, Cursor::new(magic).chain(archive));
    if gzip {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole)));
    }
    if zstd {
        let mut decoder = zstd::Decoder::with_buffer(whole)?;
        decoder.window_log_max(window_log)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(whole))
}

fn find(index: &Index, platform: &Platform) -> Result<Vec<Found>, ImageError> {
    if index.find("oci-layout").is_some()
        && let Some(layout) = index.find("index.json")
    {
        return find_in_layout(index, layout, platform);
    }
    match index.find("manifest.json") {
        Some(list) => find_in_docker_archive(index, list, platform),
        None => Err(ImageError::invalid("the archive is neither an OCI layout nor a Docker archive")),
    }
}

fn find_in_layout(index: &Index, layout: Member, platform: &Platform) -> Result<Vec<Found>, ImageError> {
    let bytes = index.bytes(layout, MAX_DOCUMENT)?;
    let Document::Index(images) = Document::parse(&bytes, OCI_INDEX)? else {
        return Err(ImageError::invalid("index.json is no index"));
    };
    check_count(images.len())?;
    let mut found: BTreeMap<Digest, Found> = BTreeMap::new();
    for image in &images {
        if image.platform.as_ref().is_some_and(|theirs| platform.rank(theirs).is_none()) {
            continue;
        }
        let tags: Vec<_> = layout_name(image)?.into_iter().collect();
        let digests: Vec<_> = tags.iter().map(|tag: &Reference| tag.with_digest(image.digest)).collect();
        let manifest = layout_manifest(index, image, platform)?;
        let new = layout_image(index, manifest, platform)?;
        let known = found.entry(new.id).or_insert(new);
        known.tags.extend(tags);
        known.digests.extend(digests);
    }
    if found.is_empty() {
        return Err(ImageError::NotFound { what: format!("an image for {platform} in the archive") });
    }
    Ok(found.into_values().collect())
}

/// A full name; a bare tag names nothing outside its layout.
fn layout_name(image: &Descriptor) -> Result<Option<Reference>, ImageError> {
    let full = image.annotations.get(FULL_NAME);
    let name = full.or_else(|| image.annotations.get(REF_NAME).filter(|name| name.contains('/')));
    name.map(|name| name.parse()).transpose()
}

fn layout_manifest(index: &Index, image: &Descriptor, platform: &Platform) -> Result<Vec<u8>, ImageError> {
    let mut at = image.clone();
    for _ in 0..MAX_DEPTH {
        let bytes = index.blob_bytes(&at.digest, MAX_DOCUMENT)?;
        let Document::Index(children) = Document::parse(&bytes, &at.media_type)? else { return Ok(bytes) };
        let chosen = choose(&children, platform).into_iter().next().cloned();
        at = chosen.ok_or_else(|| ImageError::NotFound {
            what: format!("an image for {platform} in {}", image.digest),
        })?;
    }
    Err(ImageError::invalid("an index is nested too deeply"))
}

fn layout_image(index: &Index, bytes: Vec<u8>, platform: &Platform) -> Result<Found, ImageError> {
    let Document::Manifest(manifest) = Document::parse(&bytes, "")? else {
        return Err(ImageError::invalid("a manifest of the archive is an index"));
    };
    let config_bytes = index.blob_bytes(&manifest.config.digest, MAX_CONFIG)?;
    let config = parse_config(&config_bytes, manifest.layers.len(), platform)?;
    let mut layers = Vec::with_capacity(manifest.layers.len());
    for layer in &manifest.layers {
        let expected = ExpectedBlob { digest: Some(layer.digest), size: Some(layer.size) };
        layers.push((index.blob(&layer.digest)?, expected));
    }
    let (tags, digests) = (Vec::new(), Vec::new());
    let id = manifest.config.digest;
    Ok(Found { id, config_bytes, config, manifest: Some(bytes), layers, tags, digests })
}

fn find_in_docker_archive(
    index: &Index,
    list: Member,
    platform: &Platform,
) -> Result<Vec<Found>, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Line {
        config: String,
        repo_tags: Option<Vec<String>>,
        layers: Option<Vec<String>>,
    }
    let bytes = index.bytes(list, MAX_DOCUMENT)?;
    let lines: Vec<Line> =
        serde_json::from_slice(&bytes).map_err(|e| ImageError::corrupt("manifest.json is malformed", e))?;
    check_count(lines.len())?;
    let member = |name: &str| {
        let shown: String = name.chars().take(200).collect();
        index.find(name).ok_or_else(|| ImageError::invalid(format!("the archive has no {shown:?}")))
    };
    let one = |line: Line| {
        let config_bytes = index.bytes(member(&line.config)?, MAX_CONFIG)?;
        let names = line.layers.unwrap_or_default();
        if names.len() > MAX_LAYERS {
            return Err(ImageError::invalid(format!("an image has more than {MAX_LAYERS} layers")));
        }
        let layers: Result<Vec<_>, ImageError> =
            names.iter().map(|name| Ok((member(name)?, ExpectedBlob::default()))).collect();
        let tags: Result<Vec<Reference>, _> =
            line.repo_tags.unwrap_or_default().iter().map(|tag| tag.parse()).collect();
        Ok(Found {
            id: Digest::of(&config_bytes),
            config: parse_config(&config_bytes, names.len(), platform)?,
            config_bytes,
            manifest: None,
            layers: layers?,
            tags: tags?,
            digests: Vec::new(),
        })
    };
    lines.into_iter().map(one).collect()
}

fn check_count(images: usize) -> Result<(), ImageError> {
    if images > MAX_IMAGES {
        return Err(ImageError::invalid(format!("the archive has more than {MAX_IMAGES} images")));
    }
    Ok(())
}

fn parse_config(bytes: &[u8], layers: usize, platform: &Platform) -> Result<ImageConfig, ImageError> {
    let config = ImageConfig::parse(bytes, layers)?;
    if !config.runs_on(platform) {
        return Err(ImageError::NotFound { what: format!("an image for {platform} in the archive") });
    }
    Ok(config)
}

async fn add(store: &ImageStore, index: &Arc<Index>, found: Found) -> Result<Arc<Image>, ImageError> {
    let (id, tags, digests) = (found.id, found.tags.clone(), found.digests.clone());
    let known = store.blocking("naming an image", move |inner| inner.add_names(id, &tags, &digests)).await?;
    if let Some(image) = known {
        return Ok(image);
    }
    let (members, expected): (Vec<_>, Vec<_>) = found.layers.into_iter().unzip();
    let source = ArchiveSource { index, members: &members };
    let installed = install(store, &source, &found.config, &expected).await?;
    let distinct: BTreeMap<u64, u64> = members.iter().map(|member| (member.offset, member.size)).collect();
    let new = NewImage {
        id,
        size: distinct.values().fold(found.config_bytes.len() as u64, |sum, size| sum.saturating_add(*size)),
        config_bytes: found.config_bytes,
        config: found.config,
        manifest: found.manifest,
        tags: found.tags,
        digests: found.digests,
        layers: installed.keys,
    };
    store.blocking("recording an image", move |inner| inner.commit(new, installed.lease)).await
}

/// The layers of one image in an archive file.
struct ArchiveSource<'a> {
    index: &'a Arc<Index>,
    members: &'a [Member],
}

impl LayerSource for ArchiveSource<'_> {
    async fn send(&self, index: usize, sink: BlobSink) -> Result<(), ImageError> {
        let (archive, member) = (self.index.clone(), self.members[index]);
        let sent = tokio::task::spawn_blocking(move || archive.send(member, &sink)).await;
        sent.map_err(|e| ImageError::io("reading an archive", std::io::Error::other(e)))?
    }
}

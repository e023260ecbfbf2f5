//! Writes images as an archive that is an OCI layout and a Docker archive at once.
//!
//! Blobs are not kept after a pull, so layers are written anew, uncompressed. Where that gives the bytes that the
//! image was made from (layers that were exported by this code before), the configuration and so the id stay the
//! same. Elsewhere the archive gets a configuration with the new diff-ids: same content and settings, another id.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use serde_json::{Value, json};
use tar::{Builder, Header};

use super::layer_tar::write_layer;
use crate::image::digest::{Digest, Hasher};
use crate::image::document::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::image::error::ImageError;
use crate::image::store::{Image, ImageStore, Inner, LayerKey};

/// A layer as it is written.
#[derive(Clone, Copy)]
struct Written {
    digest: Digest,
    size: u64,
}

/// The documents of one image.
struct Documents {
    config: Vec<u8>,
    manifest: Vec<u8>,
    layers: Vec<Written>,
    tags: Vec<String>,
}

/// Writes `images` to `to`. They stay complete meanwhile even if they are removed.
pub async fn export<W: Write + Send + 'static>(
    store: &ImageStore,
    images: Vec<Arc<Image>>,
    to: W,
) -> Result<W, ImageError> {
    let mut leases = Vec::with_capacity(images.len());
    let mut configs = Vec::with_capacity(images.len());
    for image in &images {
        let gone = || ImageError::NotFound { what: image.id.to_string() };
        leases.push(store.lease(image).ok_or_else(gone)?);
        configs.push(store.config_blob(image.id).await?.ok_or_else(gone)?);
    }
    store
        .blocking("writing an archive", move |inner| {
            let _leases = leases;
            write(inner, images.iter().zip(configs), to)
        })
        .await
}

fn write<'a, W: Write>(
    inner: &Inner,
    images: impl Iterator<Item = (&'a Arc<Image>, Vec<u8>)>,
    to: W,
) -> Result<W, ImageError> {
    let fail = |e| ImageError::io("writing an archive", e);
    let mut builder = Builder::new(to);
    let mut layers: BTreeMap<LayerKey, Written> = BTreeMap::new();
    // As the images have them, so that the same content gives the same archive whatever the layers' keys are.
    let mut order = Vec::new();
    let mut documents = Vec::new();
    for (image, config) in images {
        for key in &image.layers {
            if !layers.contains_key(key) {
                let layer = measure(inner, key).map_err(fail)?;
                layers.insert(*key, layer);
                order.push((*key, layer));
            }
        }
        documents.push(describe(image, config, &layers)?);
    }
    let mut blobs = Blobs { builder: &mut builder, written: BTreeMap::new() };
    for (key, layer) in &order {
        blobs.layer(inner, key, *layer).map_err(fail)?;
    }
    for image in &documents {
        blobs.bytes(&image.config).map_err(fail)?;
        blobs.bytes(&image.manifest).map_err(fail)?;
    }
    file(&mut builder, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(fail)?;
    file(&mut builder, "index.json", &layout_index(&documents)).map_err(fail)?;
    file(&mut builder, "manifest.json", &docker_list(&documents)).map_err(fail)?;
    builder.into_inner().map_err(fail)
}

/// A header needs the size first: the archive of a layer is made once to measure it and once to write it.
fn measure(inner: &Inner, key: &LayerKey) -> io::Result<Written> {
    let mut measure = Measure::default();
    write_layer(&inner.layer_path(key), &mut measure)?;
    Ok(Written { digest: measure.hasher.finish(), size: measure.size })
}

#[derive(Default)]
struct Measure {
    hasher: Hasher,
    size: u64,
}

impl Write for Measure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn describe(
    image: &Image,
    config: Vec<u8>,
    layers: &BTreeMap<LayerKey, Written>,
) -> Result<Documents, ImageError> {
    let layers: Vec<Written> = image.layers.iter().filter_map(|key| layers.get(key).copied()).collect();
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    let config = match diff_ids == image.config.rootfs.diff_ids {
        true => config,
        false => with_diff_ids(&config, &diff_ids)?,
    };
    let blob = |media_type: &str, digest: Digest, size: u64| json!({ "mediaType": media_type, "digest": digest, "size": size });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob(OCI_CONFIG, Digest::of(&config), config.len() as u64),
        "layers": layers.iter().map(|layer| blob(OCI_LAYER, layer.digest, layer.size)).collect::<Vec<_>>(),
    });
    Ok(Documents {
        config,
        manifest: manifest.to_string().into_bytes(),
        layers,
        tags: image.repo_tags.clone(),
    })
}

fn with_diff_ids(config: &[u8], diff_ids: &[Digest]) -> Result<Vec<u8>, ImageError> {
    let mut value: Value = serde_json::from_slice(config)
        .map_err(|e| ImageError::corrupt("the configuration is malformed", e))?;
    value["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
    Ok(value.to_string().into_bytes())
}

/// Blobs of the layout, each once.
struct Blobs<'a, W: Write> {
    builder: &'a mut Builder<W>,
    written: BTreeMap<Digest, ()>,
}

impl<W: Write> Blobs<'_, W> {
    fn layer(&mut self, inner: &Inner, key: &LayerKey, layer: Written) -> io::Result<()> {
        if self.written.insert(layer.digest, ()).is_some() {
            return Ok(());
        }
        let header = header(&blob_name(&layer.digest), layer.size)?;
        let to = self.builder.get_mut();
        to.write_all(header.as_bytes())?;
        write_layer(&inner.layer_path(key), &mut *to)?;
        // Archives are whole blocks: no padding follows.
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let digest = Digest::of(bytes);
        match self.written.insert(digest, ()) {
            None => file(self.builder, &blob_name(&digest), bytes),
            Some(()) => Ok(()),
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn header(name: &str, size: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

fn file<W: Write>(builder: &mut Builder<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    builder.append(&header(name, bytes.len() as u64)?, bytes)
}

fn layout_index(images: &[Documents]) -> Vec<u8> {
    let entry = |image: &Documents, annotations: Value| {
        json!({
            "mediaType": OCI_MANIFEST,
            "digest": Digest::of(&image.manifest),
            "size": image.manifest.len(),
            "annotations": annotations,
        })
    };
    let mut manifests = Vec::new();
    for image in images {
        for tag in &image.tags {
            let short = tag.rsplit_once(':').map_or(tag.as_str(), |(_, short)| short);
            let names =
                json!({ "io.containerd.image.name": tag, "org.opencontainers.image.ref.name": short });
            manifests.push(entry(image, names));
        }
        if image.tags.is_empty() {
            manifests.push(entry(image, json!({})));
        }
    }
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests }).to_string().into_bytes()
}

fn docker_list(images: &[Documents]) -> Vec<u8> {
    let lines = images.iter().map(|image| {
        json!({
            "Config": blob_name(&Digest::of(&image.config)),
            "RepoTags": image.tags,
            "Layers": image.layers.iter().map(|layer| blob_name(&layer.digest)).collect::<Vec<_>>(),
        })
    });
    Value::Array(lines.collect()).to_string().into_bytes()
}

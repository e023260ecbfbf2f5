//! Images come into being and go.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::database::{Changes, ImageRecord};
use super::{Image, Inner, LayerKey, Lease, State, Stored};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::error::ImageError;
use crate::image::reference::Reference;

/// An image whose layers are all there, under names that it gets in addition to those it has.
pub(crate) struct NewImage {
    /// Digest of the configuration.
    pub id: Digest,
    /// The configuration as delivered.
    pub config_bytes: Vec<u8>,
    /// The configuration, parsed.
    pub config: ImageConfig,
    /// The manifest as delivered.
    pub manifest: Option<Vec<u8>>,
    /// Tags; another image that has one loses it.
    pub tags: Vec<Reference>,
    /// References by digest.
    pub digests: Vec<Reference>,
    /// Bytes as delivered.
    pub size: u64,
    /// Layers, bottom to top.
    pub layers: Vec<LayerKey>,
}

impl Inner {
    /// Makes an image visible, after its layers are safe. `lease` keeps them until then.
    pub(crate) fn commit(&self, new: NewImage, lease: Lease) -> Result<Arc<Image>, ImageError> {
        self.sync_layers(&new.layers)?;
        let writer = self.writer();
        let (changes, images) = self.plan_commit(&new);
        self.database.apply(&changes)?;
        let image = {
            let mut state = self.state();
            for record in &changes.put_layers {
                if let Some(layer) = state.layers.get_mut(&record.key) {
                    layer.stored = Stored::Yes;
                }
            }
            images.into_iter().for_each(|image| state.insert(image));
            state.images.get(&new.id).cloned()
        };
        drop(writer);
        drop(lease);
        image.ok_or_else(|| ImageError::NotFound { what: new.id.to_string() })
    }

    /// Gives an image that is here already further names; none if it is gone.
    pub(crate) fn add_names(
        &self,
        id: Digest,
        tags: &[Reference],
        digests: &[Reference],
    ) -> Result<Option<Arc<Image>>, ImageError> {
        let _writer = self.writer();
        let mut image = match self.state().images.get(&id) {
            Some(image) => Image::clone(image),
            None => return Ok(None),
        };
        let before = image.clone();
        self.name(&mut image, tags, digests);
        let mut images = self.losers(&image);
        if image == before && images.is_empty() {
            return Ok(Some(Arc::new(image)));
        }
        images.push(image.clone());
        let put_images = images.iter().map(record).collect();
        self.database.apply(&Changes { put_images, ..Changes::default() })?;
        let mut state = self.state();
        images.into_iter().for_each(|image| state.insert(image));
        Ok(state.images.get(&id).cloned())
    }

    /// Takes an image and all its names away; its layers are the collector's.
    pub(super) fn remove_image(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let _writer = self.writer();
        let image = {
            let state = self.state();
            state.find(name).and_then(|id| state.images.get(&id).cloned())
        };
        let Some(image) = image else { return Ok(None) };
        let remove_blobs = image.manifest.into_iter().chain([image.id]).collect();
        self.database.apply(&Changes {
            remove_images: vec![image.id],
            remove_blobs,
            ..Changes::default()
        })?;
        let mut state = self.state();
        state.images.remove(&image.id);
        state.names.retain(|_, id| *id != image.id);
        Ok(Some(image))
    }

    /// One sync for all layers of an image; none if all were synced for another.
    fn sync_layers(&self, keys: &[LayerKey]) -> Result<(), ImageError> {
        let stored = {
            let state = self.state();
            keys.iter().all(|key| state.layers.get(key).is_some_and(|layer| layer.stored == Stored::Yes))
        };
        if stored {
            return Ok(());
        }
        let fail = |e| ImageError::io("making layers safe against power loss", e);
        let directory = std::fs::File::open(&self.layers).map_err(fail)?;
        rustix::fs::syncfs(&directory).map_err(|e| fail(e.into()))
    }

    fn plan_commit(&self, new: &NewImage) -> (Changes, Vec<Image>) {
        let mut changes =
            Changes { put_blobs: vec![(new.id, new.config_bytes.clone())], ..Changes::default() };
        let manifest = new.manifest.as_ref().map(|bytes| (Digest::of(bytes), bytes.clone()));
        let (old, layers) = {
            let state = self.state();
            let layers: BTreeSet<_> = new.layers.iter().collect();
            let unstored = layers.iter().filter_map(|key| state.layers.get(key));
            let unstored =
                unstored.filter(|layer| layer.stored == Stored::No).map(|layer| (*layer.record).clone());
            (state.images.get(&new.id).cloned(), unstored.collect())
        };
        let mut image = Image {
            id: new.id,
            repo_tags: old.as_ref().map(|old| old.repo_tags.clone()).unwrap_or_default(),
            repo_digests: old.as_ref().map(|old| old.repo_digests.clone()).unwrap_or_default(),
            size: new.size,
            config: new.config.clone(),
            layers: new.layers.clone(),
            pinned: false,
            manifest: manifest.as_ref().map(|(digest, _)| *digest),
        };
        self.name(&mut image, &new.tags, &new.digests);
        if let Some(replaced) =
            old.and_then(|old| old.manifest).filter(|digest| Some(*digest) != image.manifest)
        {
            changes.remove_blobs.push(replaced);
        }
        changes.put_blobs.extend(manifest);
        changes.put_layers = layers;
        let mut images = self.losers(&image);
        images.push(image);
        changes.put_images = images.iter().map(record).collect();
        (changes, images)
    }

    fn name(&self, image: &mut Image, tags: &[Reference], digests: &[Reference]) {
        let add = |names: &mut Vec<String>, more: &[Reference]| {
            names.extend(more.iter().map(Reference::to_string));
            names.sort();
            names.dedup();
        };
        add(&mut image.repo_tags, tags);
        add(&mut image.repo_digests, digests);
        image.pinned = self.is_pinned(image);
    }

    pub(super) fn is_pinned(&self, image: &Image) -> bool {
        let names = image.repo_tags.iter().chain(&image.repo_digests);
        let pinned: Vec<_> =
            self.config.pinned.iter().filter_map(|name| name.parse::<Reference>().ok()).collect();
        names.into_iter().any(|name| pinned.iter().any(|reference| reference.to_string() == *name))
    }

    /// Other images that have one of the image's tags, without it.
    fn losers(&self, image: &Image) -> Vec<Image> {
        let state = self.state();
        let others = state.images.values().filter(|other| other.id != image.id);
        let losing = others.filter(|other| other.repo_tags.iter().any(|tag| image.repo_tags.contains(tag)));
        losing
            .map(|other| {
                let mut loser = Image::clone(other);
                loser.repo_tags.retain(|tag| !image.repo_tags.contains(tag));
                loser.pinned = self.is_pinned(&loser);
                loser
            })
            .collect()
    }
}

fn record(image: &Image) -> ImageRecord {
    ImageRecord {
        id: image.id,
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        manifest: image.manifest,
        size: image.size,
        layers: image.layers.clone(),
    }
}

impl State {
    /// Adds or replaces an image and its names.
    pub(super) fn insert(&mut self, image: Image) {
        self.names.retain(|_, id| *id != image.id);
        for name in image.repo_tags.iter().chain(&image.repo_digests) {
            self.names.insert(name.clone(), image.id);
        }
        self.images.insert(image.id, Arc::new(image));
    }
}

//! The images of this node: which there are, under which names, and their layers on disk.
//!
//! ```text
//! <root>/images.redb          images, layers, configurations and manifests
//! <root>/layers/diff-<hex>    a layer as it was unpacked, by diff-id
//! <root>/layers/chain-<hex>   a layer fitted to its parents, by chain id
//! <root>/layers/tmp-<n>       being unpacked or removed; swept when the store is opened
//! ```
//! An image is listed only after its layers are safe against power loss. A layer lives as long as an image, a
//! [`Lease`] or a container (see [`ImageStore::retain`]) needs it, and goes at once when none does.
//!
//! Lock order: `writer` (held over a database transaction), then `state` (held for moments). Readers take `state`
//! only, so they never wait for a transaction.

mod collect;
mod commit;
mod database;
mod image;
mod lease;
mod names;
mod open;
mod staging;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use tokio::sync::Semaphore;

pub(crate) use commit::NewImage;
pub use image::{Image, LayerKey};
pub use lease::Lease;
pub(crate) use staging::StagingDir;

use super::digest::Digest;
use super::error::ImageError;
use super::platform::Platform;
use super::pull::Pulls;
use super::registry::{Registry, RegistryConfig};
use super::unpack::{Limits, Needs, Usage};
use collect::Job;
use database::Database;
pub(crate) use database::LayerRecord;

/// Settings of a store.
#[derive(Debug, Clone)]
pub struct Config {
    /// How registries are reached.
    pub registries: RegistryConfig,
    /// What is chosen from images for several platforms.
    pub platform: Platform,
    /// Bounds of one layer.
    pub limits: Limits,
    /// Layers that are downloaded and unpacked at the same time, over all pulls.
    pub parallel_layers: usize,
    /// How long a layer that another pull is bringing is waited for; then it is fetched twice.
    pub layer_wait: Duration,
    /// References of images that must not be collected; reported with the image, the kubelet honours it.
    pub pinned: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            registries: RegistryConfig::default(),
            platform: Platform::host(),
            limits: Limits::default(),
            parallel_layers: 6,
            layer_wait: Duration::from_secs(300),
            pinned: Vec::new(),
        }
    }
}

/// What the image file system holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsUsage {
    /// Bytes of all layers.
    pub bytes: u64,
    /// Files and directories of all layers.
    pub inodes: u64,
}

/// The images of a node. Clones share one store.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    root: PathBuf,
    layers: PathBuf,
    pub(crate) config: Config,
    pub(crate) registry: Registry,
    pub(crate) slots: Semaphore,
    pub(crate) pulls: Pulls,
    database: Database,
    writer: Mutex<()>,
    state: Mutex<State>,
    jobs: mpsc::Sender<Job>,
}

#[derive(Default)]
struct State {
    images: HashMap<Digest, Arc<Image>>,
    /// Tags and digests of all images, in full.
    names: HashMap<String, Digest>,
    layers: HashMap<LayerKey, Layer>,
    /// Layers that containers use, as told by [`ImageStore::retain`].
    in_use: HashSet<LayerKey>,
    /// Some record could not be read: what it needs is unknown, so nothing is removed.
    quarantined: bool,
}

struct Layer {
    record: Arc<LayerRecord>,
    leases: usize,
    stored: Stored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// In the database.
    Yes,
    /// Only on disk; gone after a crash.
    No,
}

impl ImageStore {
    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = self.inner.state().images.values().cloned().collect();
        images.sort_by_key(|image| image.id);
        images
    }

    /// The image with this id (with or without `sha256:`), tag, digest or reference, or with an id that begins so (at
    /// least 12 digits, if only one does).
    pub fn get(&self, name: &str) -> Option<Arc<Image>> {
        let state = self.inner.state();
        let id = state.find(name)?;
        state.images.get(&id).cloned()
    }

    /// Directory of a layer.
    pub fn layer_path(&self, key: &LayerKey) -> PathBuf {
        self.inner.layer_path(key)
    }

    /// Directories of an image's layers, bottom to top, as [`super::overlay`] takes them.
    pub fn layer_paths(&self, image: &Image) -> Vec<PathBuf> {
        image.layers.iter().map(|key| self.layer_path(key)).collect()
    }

    /// Directory of all layers.
    pub fn layers(&self) -> &Path {
        &self.inner.layers
    }

    /// An empty directory, for a root file system of a single read-only layer.
    pub fn empty_layer(&self) -> PathBuf {
        self.inner.layers.join("empty")
    }

    /// What all layers take, from memory.
    pub fn fs_usage(&self) -> FsUsage {
        let state = self.inner.state();
        state.layers.values().fold(FsUsage { bytes: 0, inodes: 0 }, |sum, layer| FsUsage {
            bytes: sum.bytes + layer.record.usage.bytes,
            inodes: sum.inodes + layer.record.usage.inodes,
        })
    }

    /// Directory of the store, for [`FsUsage`]'s mount point.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The configuration of an image as it was delivered.
    pub async fn config_blob(&self, id: Digest) -> Result<Option<Vec<u8>>, ImageError> {
        self.blocking("reading a configuration", move |inner| inner.database.blob(id)).await
    }

    /// The manifest of an image as it was delivered; none for an image from a Docker archive.
    pub async fn manifest_blob(&self, image: &Image) -> Result<Option<Vec<u8>>, ImageError> {
        match image.manifest {
            Some(digest) => {
                self.blocking("reading a manifest", move |inner| inner.database.blob(digest)).await
            }
            None => Ok(None),
        }
    }

    /// Removes the image with this name under all its names; what it was, or none if there is no such image. The
    /// layers that nothing else needs are gone when this returns.
    pub async fn remove(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let name = name.to_string();
        let removed = self.blocking("removing an image", move |inner| inner.remove_image(&name)).await?;
        if removed.is_some() {
            self.collect().await;
        }
        Ok(removed)
    }

    /// Replaces the set of layers that containers use beside those under lease. Until the first call the layers
    /// that are left from images removed before a restart count as used.
    pub async fn retain(&self, in_use: HashSet<LayerKey>) {
        self.inner.state().in_use = in_use;
        self.collect().await;
    }

    /// Runs blocking work to its end, also when the caller goes away.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl FnOnce(&Arc<Inner>) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|error| ImageError::io(doing, std::io::Error::other(error)))?
    }
}

impl Inner {
    /// The store's directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn layer_path(&self, key: &LayerKey) -> PathBuf {
        self.layers.join(key.to_string())
    }

    /// What a layer needs from its parents.
    pub(crate) fn layer_needs(&self, key: &LayerKey) -> Option<(Needs, Usage)> {
        self.state().layers.get(key).map(|layer| (layer.record.needs.clone(), layer.record.usage))
    }
}

//! Opening a store: what is on disk and what the records say are brought together.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use rustix::fs::Mode;
use tokio::sync::Semaphore;

use super::collect;
use super::database::{Changes, Contents, Database};
use super::staging::TEMPORARY;
use super::{Config, Image, ImageStore, Inner, Layer, LayerKey, State, Stored};
use crate::image::config::ImageConfig;
use crate::image::error::ImageError;
use crate::image::pull::Pulls;
use crate::image::registry::Registry;

impl ImageStore {
    /// Opens the store below `root`, which exists, and removes what a killed process left. Blocking.
    pub fn open(root: &Path, config: Config) -> Result<Self, ImageError> {
        let layers = root.join("layers");
        make_directory(&layers)?;
        make_directory(&layers.join("empty"))?;
        let database = Database::open(&root.join("images.redb"))?;
        let contents = database.load()?;
        let damaged = !contents.damaged.is_empty();
        if damaged {
            tracing::error!(records = ?contents.damaged, "unreadable records: no layer will be removed");
        }
        let (state, lost) = known(contents, &layers);
        if !damaged {
            database.apply(&lost)?;
            sweep(&layers, &state)?;
        }
        let (jobs, queue) = mpsc::channel();
        let inner = Arc::new(Inner {
            root: root.to_path_buf(),
            layers,
            registry: Registry::new(config.registries.clone())?,
            slots: Semaphore::new(config.parallel_layers.max(1)),
            pulls: Pulls::default(),
            config,
            database,
            writer: Mutex::default(),
            state: Mutex::new(State { quarantined: damaged, ..state }),
            jobs,
        });
        inner.mark_pinned();
        collect::start(queue, Arc::downgrade(&inner))?;
        Ok(Self { inner })
    }
}

impl Inner {
    fn mark_pinned(&self) {
        let images: Vec<_> = self.state().images.values().cloned().collect();
        for image in images.iter().filter(|image| self.is_pinned(image)) {
            self.state().insert(Image { pinned: true, ..Image::clone(image) });
        }
    }
}

/// Layers hold programs that run with other privileges when executed: nobody but root looks inside.
fn make_directory(path: &Path) -> Result<(), ImageError> {
    let fail = |e| ImageError::io(format!("making {}", path.display()), e);
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(fail(error)),
        _ => {}
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(0o700)).map_err(|e| fail(e.into()))
}

/// What the records describe and the disk has. An image that lost a layer is not an image any more.
/// Also returns what to forget.
fn known(contents: Contents, layers: &Path) -> (State, Changes) {
    let (mut state, mut lost) = (State::default(), Changes::default());
    for record in contents.layers {
        if !layers.join(record.key.to_string()).is_dir() {
            lost.remove_layers.push(record.key);
            continue;
        }
        let layer = Layer { leases: 0, stored: Stored::Yes, record: Arc::new(record) };
        state.layers.insert(layer.record.key, layer);
    }
    for (record, config) in contents.images {
        let config = ImageConfig::parse(&config, record.layers.len());
        let complete = record.layers.iter().all(|key| state.layers.contains_key(key));
        let (Ok(config), true) = (config, complete) else {
            tracing::error!(id = %record.id, names = ?record.repo_tags, "an image is incomplete and forgotten");
            lost.remove_images.push(record.id);
            lost.remove_blobs.extend(record.manifest.into_iter().chain([record.id]));
            continue;
        };
        state.insert(Image {
            id: record.id,
            repo_tags: record.repo_tags,
            repo_digests: record.repo_digests,
            size: record.size,
            config,
            layers: record.layers,
            pinned: false,
            manifest: record.manifest,
        });
    }
    let named: HashSet<LayerKey> = state.images.values().flat_map(|image| image.layers.clone()).collect();
    state.in_use = state.layers.keys().filter(|key| !named.contains(key)).copied().collect();
    (state, lost)
}

/// Removes directories that are no layer: staged, half removed, or never recorded.
fn sweep(layers: &Path, state: &State) -> Result<(), ImageError> {
    let fail = |e| ImageError::io(format!("sweeping {}", layers.display()), e);
    for entry in std::fs::read_dir(layers).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let layer = name.parse::<LayerKey>().ok();
        let known = layer.is_some_and(|key| state.layers.contains_key(&key));
        if !known && (layer.is_some() || name.starts_with(TEMPORARY)) {
            std::fs::remove_dir_all(entry.path()).map_err(fail)?;
        }
    }
    Ok(())
}

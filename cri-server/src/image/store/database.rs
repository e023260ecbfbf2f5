//! The records of images and layers in an embedded database. Knows no directory but its own file.

use std::path::{Path, PathBuf};

use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::image::LayerKey;
use crate::image::digest::Digest;
use crate::image::error::ImageError;
use crate::image::unpack::{Needs, Usage};

const IMAGES: TableDefinition<&str, &[u8]> = TableDefinition::new("images");
const LAYERS: TableDefinition<&str, &[u8]> = TableDefinition::new("layers");
/// Configurations and manifests as delivered, by digest.
const BLOBS: TableDefinition<&str, &[u8]> = TableDefinition::new("blobs");
/// The records are small and cached by the store; the database needs little memory.
const CACHE: usize = 1 << 20;

/// What is kept of an image beside its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the configuration.
    pub id: Digest,
    /// Tags in full.
    pub repo_tags: Vec<String>,
    /// Digests in full.
    pub repo_digests: Vec<String>,
    /// Digest of the manifest.
    pub manifest: Option<Digest>,
    /// Bytes as delivered.
    pub size: u64,
    /// Layers, bottom to top.
    pub layers: Vec<LayerKey>,
}

/// What is kept of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Name of its directory.
    pub key: LayerKey,
    /// What it leaves to its parents; empty once it is fitted to them.
    pub needs: Needs,
    /// What it takes on disk.
    pub usage: Usage,
}

/// Everything in the database.
#[derive(Default)]
pub struct Contents {
    /// Images with their configurations.
    pub images: Vec<(ImageRecord, Vec<u8>)>,
    /// Layers.
    pub layers: Vec<LayerRecord>,
    /// Keys of records that cannot be read.
    pub damaged: Vec<String>,
}

/// Changes that are made together or not at all.
#[derive(Default)]
pub struct Changes {
    /// Images to write.
    pub put_images: Vec<ImageRecord>,
    /// Images to remove.
    pub remove_images: Vec<Digest>,
    /// Layers to write.
    pub put_layers: Vec<LayerRecord>,
    /// Layers to remove.
    pub remove_layers: Vec<LayerKey>,
    /// Configurations and manifests to write.
    pub put_blobs: Vec<(Digest, Vec<u8>)>,
    /// Configurations and manifests to remove.
    pub remove_blobs: Vec<Digest>,
}

/// The open database. One process has it open at a time.
pub struct Database {
    file: PathBuf,
    inner: redb::Database,
}

impl Database {
    /// Opens or makes the file, and repairs it after a crash.
    pub fn open(file: &Path) -> Result<Self, ImageError> {
        let doing = || format!("opening {}", file.display());
        let inner = redb::Database::builder()
            .set_cache_size(CACHE)
            .create(file)
            .map_err(|e| ImageError::database(doing(), e))?;
        let database = Self { file: file.to_path_buf(), inner };
        // Tables exist from now on, so that reading an empty database is no special case.
        database.apply(&Changes::default())?;
        Ok(database)
    }

    /// Reads all records; one that cannot be read is named, not fatal.
    pub fn load(&self) -> Result<Contents, ImageError> {
        self.read(|transaction| {
            let mut contents = Contents::default();
            let blobs = transaction.open_table(BLOBS)?;
            for row in transaction.open_table(IMAGES)?.iter()? {
                let (key, value) = row?;
                match decode::<ImageRecord>(value.value()) {
                    Some(record) => match blobs.get(key.value())? {
                        Some(config) => contents.images.push((record, config.value().to_vec())),
                        None => contents.damaged.push(key.value().to_string()),
                    },
                    None => contents.damaged.push(key.value().to_string()),
                }
            }
            for row in transaction.open_table(LAYERS)?.iter()? {
                let (key, value) = row?;
                match decode(value.value()) {
                    Some(record) => contents.layers.push(record),
                    None => contents.damaged.push(key.value().to_string()),
                }
            }
            Ok(contents)
        })
    }

    /// A configuration or manifest.
    pub fn blob(&self, digest: Digest) -> Result<Option<Vec<u8>>, ImageError> {
        self.read(|transaction| {
            let found = transaction.open_table(BLOBS)?.get(digest.to_string().as_str())?;
            Ok(found.map(|value| value.value().to_vec()))
        })
    }

    /// Makes changes durable.
    pub fn apply(&self, changes: &Changes) -> Result<(), ImageError> {
        self.write(changes).map_err(|e| ImageError::database(format!("writing {}", self.file.display()), e))
    }

    fn write(&self, changes: &Changes) -> Result<(), redb::Error> {
        let transaction = self.inner.begin_write()?;
        {
            let mut images = transaction.open_table(IMAGES)?;
            let mut layers = transaction.open_table(LAYERS)?;
            let mut blobs = transaction.open_table(BLOBS)?;
            for id in &changes.remove_images {
                images.remove(id.to_string().as_str())?;
            }
            for key in &changes.remove_layers {
                layers.remove(key.to_string().as_str())?;
            }
            for digest in &changes.remove_blobs {
                blobs.remove(digest.to_string().as_str())?;
            }
            for record in &changes.put_images {
                images.insert(record.id.to_string().as_str(), encode(record).as_slice())?;
            }
            for record in &changes.put_layers {
                layers.insert(record.key.to_string().as_str(), encode(record).as_slice())?;
            }
            for (digest, bytes) in &changes.put_blobs {
                blobs.insert(digest.to_string().as_str(), bytes.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, ImageError> {
        let run = || work(&self.inner.begin_read()?);
        run().map_err(|e| ImageError::database(format!("reading {}", self.file.display()), e))
    }
}

fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have text keys only, and paths of layers are stored as bytes")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

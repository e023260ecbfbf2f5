//! Directories of layers on their way in and out.

use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::Mode;

use super::database::LayerRecord;
use super::{Inner, Layer, Lease, Stored};
use crate::image::error::ImageError;

/// Prefix of directories that belong to no layer.
pub(super) const TEMPORARY: &str = "tmp-";
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A directory that a layer is unpacked into; removed when dropped before it was published.
pub(crate) struct StagingDir {
    path: PathBuf,
}

impl StagingDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a staging directory stays until the next start");
        }
    }
}

impl Inner {
    /// A name that nothing has.
    pub(super) fn temporary_path(&self) -> PathBuf {
        self.layers.join(format!("{TEMPORARY}{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Makes an empty directory with the attributes that a root directory has by default.
    pub(crate) fn stage(&self) -> Result<StagingDir, ImageError> {
        let path = self.temporary_path();
        let doing = "making a directory for a layer";
        std::fs::create_dir(&path).map_err(|e| ImageError::io(doing, e))?;
        let staging = StagingDir { path };
        rustix::fs::chmod(staging.path(), Mode::from_raw_mode(0o755))
            .map_err(|e| ImageError::io(doing, e))?;
        Ok(staging)
    }

    /// Gives a finished directory its name and adds it to the lease. If the layer has come into being meanwhile,
    /// that one is taken.
    pub(crate) fn publish(
        self: &Arc<Self>,
        staging: StagingDir,
        record: LayerRecord,
        lease: &mut Lease,
    ) -> Result<(), ImageError> {
        let key = record.key;
        {
            let mut state = self.state();
            if let Entry::Vacant(vacant) = state.layers.entry(key) {
                std::fs::rename(staging.path(), self.layer_path(&key))
                    .map_err(|e| ImageError::io(format!("publishing layer {key}"), e))?;
                vacant.insert(Layer { record: Arc::new(record), leases: 0, stored: Stored::No });
            }
            lease.add_locked(&mut state, key);
        }
        Ok(())
    }
}

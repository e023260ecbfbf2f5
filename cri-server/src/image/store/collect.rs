//! Removes layers that nothing needs, on one thread, so that a claim that ends anywhere costs nothing there.

use std::sync::{Arc, Weak, mpsc};

use tokio::sync::oneshot;

use super::database::Changes;
use super::{ImageStore, Inner, LayerKey, Stored};
use crate::image::error::ImageError;

/// What the collector is asked for.
pub(super) enum Job {
    /// Remove what nothing needs, then answer.
    Collect(Option<oneshot::Sender<()>>),
}

impl ImageStore {
    /// Waits until everything is removed that nothing needs now.
    pub(super) async fn collect(&self) {
        let (done, wait) = oneshot::channel();
        if self.inner.jobs.send(Job::Collect(Some(done))).is_ok() {
            // The collector answers, or is gone with the store.
            let _ = wait.await;
        }
    }
}

/// Starts the thread; it ends with the store.
pub(super) fn start(jobs: mpsc::Receiver<Job>, store: Weak<Inner>) -> Result<(), ImageError> {
    let run = move || {
        while let Ok(Job::Collect(done)) = jobs.recv() {
            let Some(inner) = store.upgrade() else { return };
            if let Err(error) = inner.collect_layers() {
                tracing::warn!(%error, source = ?std::error::Error::source(&error), "layers stay until the next start");
            }
            drop(inner);
            if let Some(done) = done {
                // Whoever asked may be gone.
                let _ = done.send(());
            }
        }
    };
    let thread = std::thread::Builder::new().name("layer-collector".into());
    thread.spawn(run).map_err(|e| ImageError::io("starting the collector of layers", e))?;
    Ok(())
}

impl Inner {
    /// Takes layers out of the store, then off the disk. The directories change their names while the state is
    /// locked, so that a layer of the same name can come into being at once.
    fn collect_layers(self: &Arc<Self>) -> Result<(), ImageError> {
        let writer = self.writer();
        let (mut trash, mut remove_layers) = (Vec::new(), Vec::new());
        {
            let mut state = self.state();
            if state.quarantined {
                return Ok(());
            }
            for key in state.unneeded() {
                let path = self.temporary_path();
                std::fs::rename(self.layer_path(&key), &path)
                    .map_err(|e| ImageError::io(format!("removing layer {key}"), e))?;
                trash.push(path);
                if let Some(layer) = state.layers.remove(&key)
                    && layer.stored == Stored::Yes
                {
                    remove_layers.push(key);
                }
            }
        }
        if !remove_layers.is_empty() {
            self.database.apply(&Changes { remove_layers, ..Changes::default() })?;
        }
        drop(writer);
        for path in trash {
            std::fs::remove_dir_all(&path)
                .map_err(|e| ImageError::io(format!("removing {}", path.display()), e))?;
        }
        Ok(())
    }
}

impl super::State {
    fn unneeded(&self) -> Vec<LayerKey> {
        let named: std::collections::HashSet<_> =
            self.images.values().flat_map(|image| image.layers.iter().copied()).collect();
        let free = self
            .layers
            .iter()
            .filter(|(key, layer)| layer.leases == 0 && !named.contains(key) && !self.in_use.contains(key));
        free.map(|(key, _)| *key).collect()
    }
}

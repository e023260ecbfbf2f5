//! Claims on layers in memory: a pull's, a container's, an export's.

use std::sync::Arc;

use super::collect::Job;
use super::{Image, ImageStore, Inner, LayerKey, State};

/// Keeps layers alive until it is dropped, also when their image is removed.
pub struct Lease {
    inner: Arc<Inner>,
    keys: Vec<LayerKey>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.keys).finish()
    }
}

impl Lease {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        Self { inner: inner.clone(), keys: Vec::new() }
    }

    /// The layers it keeps.
    pub fn layers(&self) -> &[LayerKey] {
        &self.keys
    }

    pub(super) fn add_locked(&mut self, state: &mut State, key: LayerKey) -> bool {
        let Some(layer) = state.layers.get_mut(&key) else { return false };
        layer.leases += 1;
        self.keys.push(key);
        true
    }

    /// Adds the first of `keys` that exists.
    pub(crate) fn add_first(&mut self, keys: &[LayerKey]) -> Option<LayerKey> {
        let inner = self.inner.clone();
        let mut state = inner.state();
        keys.iter().copied().find(|key| self.add_locked(&mut state, *key))
    }

    /// Takes over the claims of another lease.
    pub(crate) fn absorb(&mut self, mut other: Lease) {
        self.keys.append(&mut other.keys);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        {
            let mut state = self.inner.state();
            for key in &self.keys {
                if let Some(layer) = state.layers.get_mut(key) {
                    layer.leases = layer.leases.saturating_sub(1);
                }
            }
        }
        // The collector is gone only when the store is; then the next start sweeps.
        let _ = self.inner.jobs.send(Job::Collect(None));
    }
}

impl ImageStore {
    /// A claim on the layers of an image, none if the image was removed meanwhile.
    pub fn lease(&self, image: &Image) -> Option<Lease> {
        self.lease_layers(&image.layers)
    }

    /// A claim on layers, none unless all of them exist: for containers found at a start.
    pub fn lease_layers(&self, keys: &[LayerKey]) -> Option<Lease> {
        let mut lease = Lease::new(&self.inner);
        let complete = {
            let mut state = self.inner.state();
            keys.iter().all(|key| lease.add_locked(&mut state, *key))
        };
        complete.then_some(lease)
    }
}

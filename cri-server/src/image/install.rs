//! Brings the layers of one image onto this node, from wherever their blobs come.
//!
//! All layers at once, within the store's limit; one that exists is not fetched; two images that need the same layer
//! at the same time fetch it once. When all are there, from the bottom up, those that need it are fitted to their
//! parents.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use futures_util::future::{BoxFuture, try_join_all};
use rustix::fs::{Mode, OFlags};

use super::config::ImageConfig;
use super::digest::Digest;
use super::error::ImageError;
use super::store::{ImageStore, Inner, LayerKey, LayerRecord, Lease, StagingDir};
use super::unpack::copy::link_tree;
use super::unpack::graft::{graft, needs_graft};
use super::unpack::{BlobSink, ExpectedBlob, Needs, Unpacked, channel, unpack};

/// Where layers come from.
pub(crate) trait LayerSource: Sync {
    /// Sends the compressed bytes of the layer with this index, bottom to top, to `sink`. Succeeds also when the sink
    /// closes early.
    fn send(&self, index: usize, sink: BlobSink) -> impl Future<Output = Result<(), ImageError>> + Send;
}

/// Layers that are on the disk and stay while the lease lives.
pub(crate) struct Installed {
    /// Bottom to top.
    pub keys: Vec<LayerKey>,
    /// Keeps them.
    pub lease: Lease,
}

/// Locks by diff-id: who holds one fetches that layer. Nobody waits for one for ever: whose it is may be slow, and a
/// diff-id is only what some configuration claims.
#[derive(Default)]
pub(crate) struct LayerLocks(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl LayerLocks {
    fn get(&self, diff_id: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(lock) = locks.get(&diff_id).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(diff_id, Arc::downgrade(&lock));
        lock
    }
}

/// Brings all layers of an image; `expected` says what their blobs are, bottom to top.
pub(crate) async fn install<S: LayerSource>(
    store: &ImageStore,
    source: &S,
    config: &ImageConfig,
    expected: &[ExpectedBlob],
) -> Result<Installed, ImageError> {
    let chain = config.chain_ids();
    let mut layers: Vec<BoxFuture<Result<(LayerKey, Lease), ImageError>>> = Vec::with_capacity(chain.len());
    for (index, (diff_id, chain_id)) in config.rootfs.diff_ids.iter().zip(&chain).enumerate() {
        let wanted = Wanted { index, diff_id: *diff_id, chain_id: *chain_id, expected: expected[index] };
        layers.push(Box::pin(one_layer(store, source, wanted)));
    }
    let found = try_join_all(layers).await?;
    store.blocking("fitting layers", move |inner| fit(inner, found, &chain)).await
}

#[derive(Clone, Copy)]
struct Wanted {
    index: usize,
    diff_id: Digest,
    chain_id: Digest,
    expected: ExpectedBlob,
}

async fn one_layer<S: LayerSource>(
    store: &ImageStore,
    source: &S,
    wanted: Wanted,
) -> Result<(LayerKey, Lease), ImageError> {
    let keys = [LayerKey::Chain(wanted.chain_id), LayerKey::Diff(wanted.diff_id)];
    let lock = store.inner.pulls.locks.get(wanted.diff_id);
    let _held = tokio::time::timeout(store.inner.config.layer_wait, lock.lock()).await.ok();
    let mut lease = Lease::new(&store.inner);
    if let Some(key) = lease.add_first(&keys) {
        return Ok((key, lease));
    }
    let _slot = store
        .inner
        .slots
        .acquire()
        .await
        .map_err(|e| ImageError::io("waiting for other layers", std::io::Error::other(e)))?;
    let (staging, unpacked) = fetch(store, source, wanted).await?;
    let key = LayerKey::Diff(wanted.diff_id);
    let record = LayerRecord { key, needs: unpacked.needs, usage: unpacked.usage };
    store.inner.publish(staging, record, &mut lease)?;
    Ok((key, lease))
}

/// Runs source and unpacker side by side. When this is dropped the unpacker ends at once, and its directory goes.
async fn fetch<S: LayerSource>(
    store: &ImageStore,
    source: &S,
    wanted: Wanted,
) -> Result<(StagingDir, Unpacked), ImageError> {
    let (sink, reader) = channel();
    let limits = store.inner.config.limits.clone();
    if wanted.expected.size.is_some_and(|size| size > limits.bytes) {
        return Err(ImageError::invalid(format!("a layer has more than {} bytes", limits.bytes)));
    }
    let unpacking = store.blocking("unpacking a layer", move |inner| {
        let staging = inner.stage()?;
        let unpacked = unpack(reader, &wanted.expected, staging.path(), &limits)?;
        if unpacked.diff_id != wanted.diff_id {
            let what = format!("a layer has diff-id {}, not {}", unpacked.diff_id, wanted.diff_id);
            return Err(ImageError::invalid(what));
        }
        Ok((staging, unpacked))
    });
    let mut unpacking = std::pin::pin!(unpacking);
    tokio::select! {
        // An unpacker that ends before the source has failed.
        unpacked = &mut unpacking => unpacked,
        sent = source.send(wanted.index, sink) => match sent {
            Ok(()) => unpacking.await,
            Err(error) => {
                // Its directory is gone when this returns; its own error is only that bytes are missing.
                let _ = unpacking.await;
                Err(error)
            }
        },
    }
}

/// From the bottom up: each layer is compared with those below it, and replaced by a fitted copy where it differs.
fn fit(inner: &Arc<Inner>, found: Vec<(LayerKey, Lease)>, chain: &[Digest]) -> Result<Installed, ImageError> {
    let mut lease = Lease::new(inner);
    let mut keys: Vec<LayerKey> = Vec::with_capacity(found.len());
    let mut unfitted = Lease::new(inner);
    for ((key, own), chain_id) in found.into_iter().zip(chain) {
        let (needs, usage) = match key {
            LayerKey::Diff(_) => inner.layer_needs(&key).unwrap_or_default(),
            LayerKey::Chain(_) => Default::default(),
        };
        let alone = inner.layer_path(&key);
        let lower = if needs == Needs::default() { Vec::new() } else { open_layers(inner, &keys)? };
        if needs == Needs::default() || !needs_graft(&alone, &lower, &needs)? {
            keys.push(key);
            lease.absorb(own);
            continue;
        }
        let fitted = LayerKey::Chain(*chain_id);
        let staging = inner.stage()?;
        copy(&alone, &staging)?;
        graft(staging.path(), &lower, &needs)?;
        let record = LayerRecord { key: fitted, needs: Needs::default(), usage };
        inner.publish(staging, record, &mut lease)?;
        keys.push(fitted);
        // What is left of a layer that no image uses as it was goes with this lease.
        unfitted.absorb(own);
    }
    Ok(Installed { keys, lease })
}

/// Topmost first; a layer that occurs twice counts where it is on top.
fn open_layers(inner: &Inner, keys: &[LayerKey]) -> Result<Vec<OwnedFd>, ImageError> {
    let mut seen = std::collections::HashSet::new();
    let paths: Vec<PathBuf> =
        keys.iter().rev().filter(|key| seen.insert(**key)).map(|key| inner.layer_path(key)).collect();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &PathBuf| {
        rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| ImageError::io(format!("opening {}", path.display()), e))
    };
    paths.iter().map(open).collect()
}

fn copy(from: &std::path::Path, staging: &StagingDir) -> Result<(), ImageError> {
    let fail = |e| ImageError::io("copying a layer", e);
    let open = |path: &std::path::Path| std::fs::File::open(path).map_err(fail);
    link_tree(open(from)?, open(staging.path())?).map_err(fail)
}

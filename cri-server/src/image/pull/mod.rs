//! Pulls. Equal pulls that run at the same time are one: the same reference with the same credentials. Each waiter
//! keeps its own deadline; the work ends with its last waiter, and leaves nothing.

mod source;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use tokio::time::Instant;

use super::config::ImageConfig;
use super::digest::Digest;
use super::error::ImageError;
use super::install::{LayerLocks, install};
use super::reference::Reference;
use super::registry::{Credentials, Session};
use super::store::{Image, ImageStore, NewImage};
use super::unpack::ExpectedBlob;
use source::RegistrySource;

/// What is to be pulled.
#[derive(Clone)]
pub struct PullRequest {
    /// The image.
    pub reference: Reference,
    /// Who asks; nobody without.
    pub credentials: Option<Credentials>,
    /// When waiting ends.
    pub deadline: Option<Instant>,
    /// Who is told how far it is.
    pub progress: Option<Arc<dyn Progress>>,
}

impl PullRequest {
    /// An anonymous pull without a deadline.
    pub fn new(reference: Reference) -> Self {
        Self { reference, credentials: None, deadline: None, progress: None }
    }
}

/// Is told how far a pull is; must return at once.
pub trait Progress: Send + Sync {
    /// Compressed bytes of a layer that have arrived, and how many there are. A layer that exists is not mentioned.
    fn layer(&self, digest: &Digest, done: u64, total: u64);
}

type Work = Pin<Box<dyn Future<Output = Result<Arc<Image>, ImageError>> + Send>>;
type Key = (Reference, Option<Credentials>);

/// Pulls that are running.
#[derive(Default)]
pub(crate) struct Pulls {
    running: Mutex<HashMap<Key, Running>>,
    pub(crate) locks: LayerLocks,
}

struct Running {
    work: WeakShared<Work>,
    status: Arc<Status>,
}

/// What a running pull shows to its waiters.
#[derive(Default)]
struct Status {
    stage: Mutex<String>,
    watchers: Mutex<Vec<Arc<dyn Progress>>>,
}

impl Status {
    fn enter(&self, stage: String) {
        *self.stage.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = stage;
    }

    fn stage(&self) -> String {
        self.stage.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn watch(&self, watcher: Option<Arc<dyn Progress>>) {
        self.watchers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(watcher);
    }

    fn layer(&self, digest: &Digest, done: u64, total: u64) {
        let watchers = self.watchers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        watchers.iter().for_each(|watcher| watcher.layer(digest, done, total));
    }
}

impl ImageStore {
    /// Pulls an image, or joins an equal pull. Dropping the future is leaving: the last to leave ends the pull.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, ImageError> {
        let (work, status) = self.join(&request);
        status.watch(request.progress);
        let Some(deadline) = request.deadline else { return work.await };
        match tokio::time::timeout_at(deadline, work).await {
            Ok(done) => done,
            Err(_) => Err(ImageError::DeadlineExceeded { stage: status.stage() }),
        }
    }

    fn join(&self, request: &PullRequest) -> (Shared<Work>, Arc<Status>) {
        let key = (request.reference.clone(), request.credentials.clone());
        let mut running = self.inner.pulls.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(found) = running.get(&key)
            && let Some(work) = found.work.upgrade()
            // A pull that is done shows what the registry had then, not what it has now.
            && work.peek().is_none()
        {
            return (work, found.status.clone());
        }
        running.retain(|_, running| running.work.upgrade().is_some_and(|work| work.peek().is_none()));
        let status = Arc::new(Status::default());
        status.enter(format!("starting to pull {}", request.reference));
        let work: Work = Box::pin(run(self.clone(), key.clone(), status.clone()));
        let work = work.shared();
        if let Some(weak) = work.downgrade() {
            running.insert(key, Running { work: weak, status: status.clone() });
        }
        (work, status)
    }
}

async fn run(
    store: ImageStore,
    (reference, credentials): Key,
    status: Arc<Status>,
) -> Result<Arc<Image>, ImageError> {
    let session = store.inner.registry.session(&reference, credentials)?;
    status.enter(format!("looking for {reference}"));
    let resolved = session.resolve(&store.inner.config.platform).await?;
    let id = resolved.manifest.config.digest;
    let tags: Vec<_> = reference.tag().map(|_| reference.clone()).into_iter().collect();
    let digests = vec![reference.with_digest(resolved.digest)];
    let names = (tags.clone(), digests.clone());
    let known =
        store.blocking("naming an image", move |inner| inner.add_names(id, &names.0, &names.1)).await?;
    if let Some(image) = known {
        return Ok(image);
    }
    status.enter(format!("fetching the configuration of {reference}"));
    let config_bytes = session.config_blob(&resolved.manifest.config).await?.to_vec();
    let config = ImageConfig::parse(&config_bytes, resolved.manifest.layers.len())?;
    if !config.runs_on(&store.inner.config.platform) {
        let what = format!("{reference} for {}", store.inner.config.platform);
        return Err(ImageError::NotFound { what });
    }
    status.enter(format!("downloading and unpacking the layers of {reference}"));
    let installed = install_layers(&store, &session, &resolved.manifest.layers, (&config, &status)).await?;
    status.enter(format!("recording {reference}"));
    let new = NewImage {
        id,
        size: size(&config_bytes, &resolved.manifest.layers),
        config_bytes,
        config,
        manifest: Some(resolved.bytes.to_vec()),
        tags,
        digests,
        layers: installed.keys,
    };
    store.blocking("recording an image", move |inner| inner.commit(new, installed.lease)).await
}

async fn install_layers(
    store: &ImageStore,
    session: &Session,
    layers: &[super::document::Descriptor],
    (config, status): (&ImageConfig, &Status),
) -> Result<super::install::Installed, ImageError> {
    let expected: Vec<_> = layers
        .iter()
        .map(|layer| ExpectedBlob { digest: Some(layer.digest), size: Some(layer.size) })
        .collect();
    let source = RegistrySource { session, layers, status };
    install(store, &source, config, &expected).await
}

/// Each blob once.
fn size(config: &[u8], layers: &[super::document::Descriptor]) -> u64 {
    let distinct: HashMap<_, _> = layers.iter().map(|layer| (layer.digest, layer.size)).collect();
    distinct.values().fold(config.len() as u64, |sum, size| sum.saturating_add(*size))
}

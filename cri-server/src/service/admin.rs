//! Admin: what an administrator asks of the daemon beyond the CRI.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::admin::pull_image_progress::Layer;
use proto::admin::*;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::io::StreamReader;
use tonic::{Request, Response, Status, Streaming};

use super::{CHUNK, Service};
use crate::error::Error;
use crate::image::{self, Credentials, Digest, Progress, PullRequest};

/// How often a pull reports.
const INTERVAL: Duration = Duration::from_millis(100);

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl admin_server::Admin for Service {
    type PullImageStream = Items<PullImageProgress>;
    type ExportImageStream = Items<Chunk>;

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<Self::PullImageStream> {
        let request = request.into_inner();
        let reference = request.reference.parse().map_err(Error::from)?;
        let credentials = (!request.username.is_empty())
            .then_some(Credentials::Basic { user: request.username, password: request.password });
        let seen = Arc::new(Seen::default());
        let pull = PullRequest { credentials, progress: Some(seen.clone()), ..PullRequest::new(reference) };
        let images = self.daemon.images.clone();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let pull = images.pull(pull);
            tokio::pin!(pull);
            let mut tick = tokio::time::interval(INTERVAL);
            loop {
                tokio::select! {
                    result = &mut pull => {
                        let last = result.map(|image| seen.message(image.id.to_string()));
                        // Nobody is left to tell.
                        sender.send(last.map_err(|error| Error::from(error).into())).await.unwrap_or_default();
                        return;
                    }
                    _now = tick.tick() => {
                        if sender.send(Ok(seen.message(String::new()))).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn import_images(&self, request: Request<Streaming<Chunk>>) -> Answer<ImportImagesResponse> {
        let chunks = request.into_inner().map(|chunk| match chunk {
            Ok(chunk) => Ok(bytes::Bytes::from(chunk.bytes)),
            Err(status) => Err(std::io::Error::other(status.message().to_string())),
        });
        let images = image::import(&self.daemon.images, StreamReader::new(chunks)).await.map_err(Error::from)?;
        let image = |image: &Arc<image::Image>| import_images_response::Image {
            id: image.id.to_string(),
            names: image.repo_tags.clone(),
        };
        Ok(Response::new(ImportImagesResponse { images: images.iter().map(image).collect() }))
    }

    async fn export_image(&self, request: Request<ExportImageRequest>) -> Answer<Self::ExportImageStream> {
        let name = request.into_inner().reference;
        let image =
            self.daemon.images.get(&name).ok_or_else(|| Error::NotFound { kind: "image", id: name.clone() })?;
        let images = self.daemon.images.clone();
        let (sender, receiver) = mpsc::channel(4);
        let (writer, mut reader) = tokio::io::duplex(CHUNK);
        tokio::spawn(async move {
            let export = image::export(&images, &image, writer);
            let copy = async {
                loop {
                    let mut bytes = vec![0; CHUNK];
                    match reader.read(&mut bytes).await {
                        Ok(0) => return Ok(()),
                        Ok(length) => {
                            bytes.truncate(length);
                            if sender.send(Ok(Chunk { bytes })).await.is_err() {
                                return Ok(());
                            }
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            let (exported, copied) = tokio::join!(export, copy);
            let failed = exported.map_err(Error::from).err();
            let failed = failed.or(copied.err().map(Error::host("export an image")));
            if let Some(error) = failed {
                // Nobody is left to tell.
                sender.send(Err(error.into())).await.unwrap_or_default();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// What a pull has told so far.
#[derive(Default)]
struct Seen {
    layers: Mutex<BTreeMap<String, (u64, u64)>>,
}

impl Progress for Seen {
    fn layer(&self, digest: &Digest, done: u64, total: u64) {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.to_string(), (done, total));
    }
}

impl Seen {
    fn message(&self, image_id: String) -> PullImageProgress {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let layer = |(digest, (done, total)): (&String, &(u64, u64))| Layer {
            digest: digest.clone(),
            done: *done,
            total: *total,
        };
        PullImageProgress { layers: layers.iter().map(layer).collect(), image_id }
    }
}

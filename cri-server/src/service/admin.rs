//! Admin: what an administrator asks of the daemon beyond the CRI.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::admin::pull_image_progress::Layer;
use proto::admin::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{CHUNK, Service};
use crate::detached::{blocking, detached};
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
        let mut chunks = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|status| io::Error::other(status.message().to_string()));
                if sender.send(chunk.map(|chunk| chunk.bytes)).await.is_err() {
                    return;
                }
            }
        });
        let reader = ChunkReader { receiver, rest: io::Cursor::default() };
        let images = image::import(&self.daemon.images, reader).await.map_err(Error::from)?;
        let image = |image: &Arc<image::Image>| import_images_response::Image {
            id: image.id.to_string(),
            names: image.repo_tags.clone(),
        };
        Ok(Response::new(ImportImagesResponse { images: images.iter().map(image).collect() }))
    }

    async fn export_image(&self, request: Request<ExportImageRequest>) -> Answer<Self::ExportImageStream> {
        let name = request.into_inner().reference;
        let image = self
            .daemon
            .images
            .get(&name)
            .ok_or_else(|| Error::NotFound { kind: "image", id: name.clone() })?;
        let images = self.daemon.images.clone();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let writer = io::BufWriter::with_capacity(CHUNK, ChunkWriter { sender: sender.clone() });
            // Detached, so that a panic becomes an error and not a short archive that looks whole.
            let exported = detached(async move {
                let writer = image::export(&images, vec![image], writer).await?;
                let flush = move || writer.into_inner().map(drop).map_err(io::IntoInnerError::into_error);
                blocking(flush).await?.map_err(Error::host("export an image"))
            });
            if let Err(error) = exported.await {
                // Nobody is left to tell.
                sender.send(Err(error.into())).await.unwrap_or_default();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// An archive that arrives in pieces, as blocking code reads it.
struct ChunkReader {
    receiver: mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: io::Cursor<Vec<u8>>,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.position() == self.rest.get_ref().len() as u64 {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.rest = io::Cursor::new(chunk?),
                None => return Ok(0),
            }
        }
        self.rest.read(buffer)
    }
}

/// An archive that leaves in pieces, as blocking code writes it.
struct ChunkWriter {
    sender: mpsc::Sender<Result<Chunk, Status>>,
}

impl Write for ChunkWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let bytes = buffer[..buffer.len().min(CHUNK)].to_vec();
        let length = bytes.len();
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client went away");
        self.sender.blocking_send(Ok(Chunk { bytes })).map_err(gone)?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

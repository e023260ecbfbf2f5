//! The daemon's own client, for the administrator's subcommands.

use std::io::Write;
use std::path::Path;

use proto::admin::admin_client::AdminClient;
use proto::admin::{self, Chunk, ExportImageRequest, PullImageProgress, PullImageRequest};
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::{Image, ImageSpec, ListImagesRequest, RemoveImageRequest};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::{CHUNK, MESSAGE_LIMIT};

/// A connection to the daemon.
pub struct Client {
    admin: AdminClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Client {
    /// Connects to the daemon's socket.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let channel = Endpoint::try_from(format!("unix:{}", socket.display()))?.connect().await?;
        Ok(Self {
            admin: AdminClient::new(channel.clone()),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        })
    }

    /// Pulls an image and shows how far it is; returns its id.
    pub async fn pull(
        &mut self,
        reference: String,
        username: String,
        password: String,
        mut show: impl FnMut(&PullImageProgress) -> std::io::Result<()>,
    ) -> anyhow::Result<String> {
        let request = PullImageRequest { reference, username, password };
        let mut stream = self.admin.pull_image(request).await.map_err(plain)?.into_inner();
        while let Some(progress) = stream.message().await.map_err(plain)? {
            show(&progress)?;
            if !progress.image_id.is_empty() {
                return Ok(progress.image_id);
            }
        }
        anyhow::bail!("the daemon ended the pull without an image")
    }

    /// All images.
    pub async fn list(&mut self) -> anyhow::Result<Vec<Image>> {
        Ok(self.images.list_images(ListImagesRequest::default()).await.map_err(plain)?.into_inner().images)
    }

    /// Removes an image.
    pub async fn remove(&mut self, name: String) -> anyhow::Result<()> {
        let image = Some(ImageSpec { image: name, ..Default::default() });
        self.images.remove_image(RemoveImageRequest { image }).await.map_err(plain)?;
        Ok(())
    }

    /// Sends an archive; returns the images in it.
    pub async fn import(
        &mut self,
        mut reader: impl AsyncRead + Unpin + Send + 'static,
        mut show: impl FnMut(u64) -> std::io::Result<()> + Send + 'static,
    ) -> anyhow::Result<Vec<admin::import_images_response::Image>> {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let sending = tokio::spawn(async move {
            let mut done = 0;
            loop {
                let mut bytes = vec![0; CHUNK];
                let length = reader.read(&mut bytes).await?;
                bytes.truncate(length);
                done += length as u64;
                show(done)?;
                if length == 0 || sender.send(Chunk { bytes }).await.is_err() {
                    return std::io::Result::Ok(());
                }
            }
        });
        let response = self.admin.import_images(ReceiverStream::new(receiver)).await.map_err(plain)?;
        sending.await??;
        Ok(response.into_inner().images)
    }

    /// Receives an image as an archive.
    pub async fn export(&mut self, reference: String, out: &mut (impl Write + ?Sized)) -> anyhow::Result<()> {
        let mut stream =
            self.admin.export_image(ExportImageRequest { reference }).await.map_err(plain)?.into_inner();
        while let Some(chunk) = stream.next().await {
            out.write_all(&chunk.map_err(plain)?.bytes)?;
        }
        Ok(out.flush()?)
    }
}

/// A status as a person reads it.
fn plain(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{} ({:?})", status.message(), status.code())
}

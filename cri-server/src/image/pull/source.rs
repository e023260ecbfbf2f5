//! Layers from a registry.

use super::Status;
use crate::image::document::Descriptor;
use crate::image::error::ImageError;
use crate::image::install::LayerSource;
use crate::image::registry::Session;
use crate::image::unpack::BlobSink;

/// The layers of one image in its registry.
pub(super) struct RegistrySource<'a> {
    /// The pull's conversation.
    pub session: &'a Session,
    /// The layers, bottom to top.
    pub layers: &'a [Descriptor],
    /// Who is told.
    pub status: &'a Status,
}

impl LayerSource for RegistrySource<'_> {
    async fn send(&self, index: usize, sink: BlobSink) -> Result<(), ImageError> {
        let layer = &self.layers[index];
        self.status.layer(&layer.digest, 0, layer.size);
        let on_progress = |done| self.status.layer(&layer.digest, done, layer.size);
        self.session.blob(layer.digest, layer.size, sink, &on_progress).await
    }
}

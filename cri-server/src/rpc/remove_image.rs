//! RemoveImage: by any of its names, with all of them. Idempotent.

use std::sync::Arc;

use proto::cri::{RemoveImageRequest, RemoveImageResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::cri_config::missing;

/// Removes an image; its layers stay while containers stand on them.
pub async fn remove_image(
    daemon: &Arc<Daemon>,
    request: RemoveImageRequest,
) -> Result<RemoveImageResponse, Error> {
    let name = request.image.map(|image| image.image).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| missing("image.image"))?;
    daemon.images.remove(&name).await?;
    Ok(RemoveImageResponse {})
}

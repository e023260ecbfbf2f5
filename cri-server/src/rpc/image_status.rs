//! ImageStatus: an image that is not there is an answer without an image, not an error.

use std::collections::BTreeMap;

use proto::cri::{ImageStatusRequest, ImageStatusResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::convert;
use crate::steps::cri_config::missing;

/// Status of an image, by id, tag or digest.
pub async fn image_status(
    daemon: &Daemon,
    request: &ImageStatusRequest,
) -> Result<ImageStatusResponse, Error> {
    let name = request.image.as_ref().map(|image| image.image.as_str()).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| missing("image.image"))?;
    let Some(image) = daemon.images.get(name) else {
        return Ok(ImageStatusResponse::default());
    };
    let mut info = BTreeMap::new();
    if request.verbose {
        let blob = daemon.images.config_blob(image.id).await?.unwrap_or_default();
        let config: serde_json::Value = serde_json::from_slice(&blob).unwrap_or_default();
        let detail = serde_json::json!({ "imageSpec": config, "layers": image.layers });
        info.insert("info".to_string(), detail.to_string());
    }
    Ok(ImageStatusResponse { image: Some(convert::image(&image)), info })
}

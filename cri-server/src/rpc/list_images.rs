//! ListImages.

use proto::cri::{ListImagesRequest, ListImagesResponse};

use crate::daemon::Daemon;
use crate::steps::convert;

/// Images that pass the filter.
pub fn list_images(daemon: &Daemon, request: &ListImagesRequest) -> ListImagesResponse {
    let filter =
        request.filter.as_ref().and_then(|filter| filter.image.as_ref()).map(|image| image.image.as_str());
    let images = match filter {
        None | Some("") => daemon.images.list(),
        Some(name) => daemon.images.get(name).into_iter().collect(),
    };
    ListImagesResponse { images: images.iter().map(|image| convert::image(image)).collect() }
}

//! ListImages.

use proto::cri::{ListImagesRequest, ListImagesResponse};

use crate::daemon::Daemon;
use crate::steps::listing;

/// Images that pass the filter.
pub fn list_images(daemon: &Daemon, request: ListImagesRequest) -> ListImagesResponse {
    ListImagesResponse { images: listing::images(daemon, request.filter) }
}

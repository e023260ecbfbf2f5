//! StreamImages.

use proto::cri::{StreamImagesRequest, StreamImagesResponse};

use crate::daemon::Daemon;
use crate::steps::listing;

/// The list of ListImages in messages of bounded size.
pub fn stream_images(daemon: &Daemon, request: StreamImagesRequest) -> Vec<StreamImagesResponse> {
    let chunks = listing::chunks(listing::images(daemon, request.filter));
    chunks.into_iter().map(|images| StreamImagesResponse { images }).collect()
}

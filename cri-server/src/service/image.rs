//! ImageService.

use std::pin::Pin;

use proto::cri::*;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::Service;
use crate::detached::detached;
use crate::error::Error;
use crate::rpc;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl image_service_server::ImageService for Service {
    type StreamImagesStream = Pin<Box<dyn Stream<Item = Result<StreamImagesResponse, Status>> + Send>>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(rpc::list_images::list_images(&self.daemon, &request.into_inner())))
    }

    async fn stream_images(&self, _: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        Err(Error::Unimplemented("StreamImages").into())
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        Ok(Response::new(rpc::image_status::image_status(&self.daemon, &request.into_inner()).await?))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        Ok(Response::new(rpc::pull_image::pull_image(&self.daemon, request.into_inner()).await?))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let daemon = self.daemon.clone();
        let work = async move { rpc::remove_image::remove_image(&daemon, request.into_inner()).await };
        Ok(Response::new(detached(work).await?))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        Ok(Response::new(rpc::image_fs_info::image_fs_info(&self.daemon).await?))
    }
}

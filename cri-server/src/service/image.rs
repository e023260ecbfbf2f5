//! ImageService.

use proto::cri::*;
use tonic::{Request, Response, Status};

use super::{Items, Service, items};
use crate::detached::detached;
use crate::rpc;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl image_service_server::ImageService for Service {
    type StreamImagesStream = Items<StreamImagesResponse>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(rpc::list_images::list_images(&self.daemon, request.into_inner())))
    }

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        Ok(items(rpc::stream_images::stream_images(&self.daemon, request.into_inner())))
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

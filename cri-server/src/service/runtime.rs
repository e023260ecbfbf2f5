//! RuntimeService.

use proto::cri::*;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status};

use super::{Items, Service, items};
use crate::detached::detached;
use crate::error::Error;
use crate::events::Reader;
use crate::rpc;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl runtime_service_server::RuntimeService for Service {
    type StreamPodSandboxesStream = Items<StreamPodSandboxesResponse>;
    type StreamContainersStream = Items<StreamContainersResponse>;
    type StreamContainerStatsStream = Items<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Items<StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = Items<ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = Items<StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(rpc::version::version()))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let daemon = self.daemon.clone();
        let work = async move { rpc::run_pod_sandbox::run_pod_sandbox(&daemon, request.into_inner()).await };
        Ok(Response::new(detached(work).await?))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let daemon = self.daemon.clone();
        let work =
            async move { rpc::stop_pod_sandbox::stop_pod_sandbox(&daemon, request.into_inner()).await };
        Ok(Response::new(detached(work).await?))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let daemon = self.daemon.clone();
        let work =
            async move { rpc::remove_pod_sandbox::remove_pod_sandbox(&daemon, request.into_inner()).await };
        Ok(Response::new(detached(work).await?))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        Ok(Response::new(rpc::pod_sandbox_status::pod_sandbox_status(&self.daemon, &request.into_inner())?))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        Ok(Response::new(rpc::list_pod_sandbox::list_pod_sandbox(&self.daemon, request.into_inner())))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        Ok(items(rpc::stream_pod_sandboxes::stream_pod_sandboxes(&self.daemon, request.into_inner())))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let daemon = self.daemon.clone();
        let work =
            async move { rpc::create_container::create_container(&daemon, request.into_inner()).await };
        Ok(Response::new(detached(work).await?))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let daemon = self.daemon.clone();
        let work = async move { rpc::start_container::start_container(&daemon, request.into_inner()).await };
        Ok(Response::new(detached(work).await?))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let daemon = self.daemon.clone();
        let work = async move { rpc::stop_container::stop_container(&daemon, request.into_inner()).await };
        Ok(Response::new(detached(work).await?))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let daemon = self.daemon.clone();
        let work =
            async move { rpc::remove_container::remove_container(&daemon, request.into_inner()).await };
        Ok(Response::new(detached(work).await?))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        Ok(Response::new(rpc::list_containers::list_containers(&self.daemon, request.into_inner())))
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        Ok(items(rpc::stream_containers::stream_containers(&self.daemon, request.into_inner())))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        Ok(Response::new(rpc::container_status::container_status(&self.daemon, &request.into_inner())?))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let daemon = self.daemon.clone();
        let work = async move {
            rpc::update_container_resources::update_container_resources(&daemon, request.into_inner()).await
        };
        Ok(Response::new(detached(work).await?))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let daemon = self.daemon.clone();
        let work = async move {
            rpc::reopen_container_log::reopen_container_log(&daemon, request.into_inner()).await
        };
        Ok(Response::new(detached(work).await?))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        // Not detached: what is dropped when its client goes is killed.
        Ok(Response::new(rpc::exec_sync::exec_sync(&self.daemon, request.into_inner()).await?))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let exec = rpc::exec::exec(&self.daemon, request.into_inner())?;
        Ok(Response::new(ExecResponse { url: self.streaming.url_for(exec)? }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let attach = rpc::attach::attach(&self.daemon, request.into_inner())?;
        Ok(Response::new(AttachResponse { url: self.streaming.url_for(attach)? }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let forward = rpc::port_forward::port_forward(&self.daemon, request.into_inner())?;
        Ok(Response::new(PortForwardResponse { url: self.streaming.url_for(forward)? }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        Ok(Response::new(rpc::container_stats::container_stats(&self.daemon, request.into_inner()).await?))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        Ok(Response::new(
            rpc::list_container_stats::list_container_stats(&self.daemon, request.into_inner()).await?,
        ))
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let request = request.into_inner();
        Ok(items(rpc::stream_container_stats::stream_container_stats(&self.daemon, request).await?))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        Ok(Response::new(
            rpc::pod_sandbox_stats::pod_sandbox_stats(&self.daemon, request.into_inner()).await?,
        ))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        Ok(Response::new(
            rpc::list_pod_sandbox_stats::list_pod_sandbox_stats(&self.daemon, request.into_inner()).await?,
        ))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let request = request.into_inner();
        Ok(items(rpc::stream_pod_sandbox_stats::stream_pod_sandbox_stats(&self.daemon, request).await?))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let request = request.into_inner();
        Ok(Response::new(rpc::update_runtime_config::update_runtime_config(&self.daemon, request)?))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        Ok(Response::new(rpc::status::status(&self.daemon, request.into_inner()).await?))
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        let daemon = self.daemon.clone();
        let work = async move {
            rpc::checkpoint_container::checkpoint_container(&daemon, request.into_inner()).await
        };
        Ok(Response::new(detached(work).await?))
    }

    async fn checkpoint_pod(&self, _: Request<CheckpointPodRequest>) -> Answer<CheckpointPodResponse> {
        Err(Error::Unimplemented("CheckpointPod").into())
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        Err(Error::Unimplemented("RestorePod").into())
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let reader = rpc::get_container_events::get_container_events(&self.daemon);
        let next = |mut reader: Reader| async { reader.next().await.map(|event| (event, reader)) };
        let events = futures_util::stream::unfold(reader, next);
        Ok(Response::new(Box::pin(events.map(|event| event.map_err(Status::from)))))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(rpc::list_metric_descriptors::list_metric_descriptors(&self.daemon)))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        Ok(Response::new(rpc::list_pod_sandbox_metrics::list_pod_sandbox_metrics(&self.daemon).await?))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Ok(items(rpc::stream_pod_sandbox_metrics::stream_pod_sandbox_metrics(&self.daemon).await?))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        Ok(Response::new(rpc::runtime_config::runtime_config(&self.daemon)))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let daemon = self.daemon.clone();
        let work = async move {
            rpc::update_pod_sandbox_resources::update_pod_sandbox_resources(&daemon, request.into_inner())
                .await
        };
        Ok(Response::new(detached(work).await?))
    }
}

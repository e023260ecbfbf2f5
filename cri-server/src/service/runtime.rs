//! RuntimeService.

use std::pin::Pin;

use proto::cri::*;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::Service;
use crate::detached::detached;
use crate::error::Error;
use crate::rpc;

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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
        Ok(Response::new(rpc::list_pod_sandbox::list_pod_sandbox(&self.daemon, &request.into_inner())))
    }

    async fn stream_pod_sandboxes(
        &self,
        _: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        Err(Error::Unimplemented("StreamPodSandboxes").into())
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
        Ok(Response::new(rpc::list_containers::list_containers(&self.daemon, &request.into_inner())))
    }

    async fn stream_containers(
        &self,
        _: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        Err(Error::Unimplemented("StreamContainers").into())
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        Ok(Response::new(rpc::container_status::container_status(&self.daemon, &request.into_inner())?))
    }

    async fn update_container_resources(
        &self,
        _: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        Err(Error::Unimplemented("UpdateContainerResources").into())
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
        let daemon = self.daemon.clone();
        let work = async move { rpc::exec_sync::exec_sync(&daemon, request.into_inner()).await };
        Ok(Response::new(detached(work).await?))
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
        _: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        Err(Error::Unimplemented("StreamContainerStats").into())
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
        _: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        Err(Error::Unimplemented("StreamPodSandboxStats").into())
    }

    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        Ok(Response::new(rpc::status::status(&self.daemon, request.into_inner()).await?))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Error::Unimplemented("CheckpointContainer").into())
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
        Err(Error::Unimplemented("GetContainerEvents").into())
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Err(Error::Unimplemented("ListMetricDescriptors").into())
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        Err(Error::Unimplemented("ListPodSandboxMetrics").into())
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Err(Error::Unimplemented("StreamPodSandboxMetrics").into())
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        Ok(Response::new(rpc::runtime_config::runtime_config()))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        Err(Error::Unimplemented("UpdatePodSandboxResources").into())
    }
}

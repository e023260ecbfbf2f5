//! A typed CRI client over a unix socket, and short ways to say what a test's pods and containers are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use proto::cri;
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::wait;

/// Largest message that a CRI client takes.
const MAX_MESSAGE: usize = 16 << 20;
/// Deadline of each call.
const CALL: Duration = Duration::from_secs(120);

/// A connection to a CRI socket.
#[derive(Clone, Debug)]
pub struct Cri {
    /// The runtime service, for calls that have no short form here.
    pub runtime: RuntimeServiceClient<Channel>,
    /// The image service.
    pub images: ImageServiceClient<Channel>,
    /// What both stand on.
    pub channel: Channel,
    logs: PathBuf,
}

/// What a command inside a container said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code.
    pub code: i32,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
}

impl Cri {
    /// Connects to `socket`; pods of this client log below `logs`.
    pub async fn connect(socket: &Path, logs: &Path) -> Result<Self> {
        let channel = channel(socket).await?;
        let runtime = RuntimeServiceClient::new(channel.clone());
        let images = ImageServiceClient::new(channel.clone());
        Ok(Self {
            runtime: runtime.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE),
            images: images.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE),
            channel,
            logs: logs.to_owned(),
        })
    }

    /// A pod's configuration: own namespaces, a PID namespace per container, logs below the node's log directory.
    #[must_use]
    pub fn pod(&self, name: &str) -> cri::PodSandboxConfig {
        let metadata = cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "e2e".to_owned(),
            attempt: 0,
        };
        let namespaces =
            cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() };
        let security =
            cri::LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        cri::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: self.logs.join(name).to_string_lossy().into_owned(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs a pod on the default handler.
    pub async fn run_pod(&self, pod: &cri::PodSandboxConfig) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// Stops a pod.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    /// Removes a pod.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// Stops and removes a pod.
    pub async fn end_pod(&self, id: &str) -> Result<(), Status> {
        self.stop_pod(id).await?;
        self.remove_pod(id).await
    }

    /// A pod's status.
    pub async fn pod_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer has no status"))
    }

    /// The listed pods of that name.
    pub async fn pods_named(&self, name: &str) -> Result<Vec<cri::PodSandbox>, Status> {
        let all = self.runtime.clone().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
        let mut pods = all.into_inner().items;
        pods.retain(|pod| pod.metadata.as_ref().is_some_and(|metadata| metadata.name == name));
        Ok(pods)
    }

    /// Creates a container.
    pub async fn create(
        &self,
        pod_id: &str,
        config: &cri::ContainerConfig,
        pod: &cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod_id.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    /// Starts a created container.
    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// Creates and starts a container.
    pub async fn launch(
        &self,
        pod_id: &str,
        config: &cri::ContainerConfig,
        pod: &cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let id = self.create(pod_id, config, pod).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// Stops a container: its stop signal, then SIGKILL after `grace` seconds.
    pub async fn stop(&self, id: &str, grace: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// Removes a container.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    /// A container's status.
    pub async fn status(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer has no status"))
    }

    /// One of a container's metrics.
    pub async fn metric(&self, id: &str, name: &str) -> Result<Option<u64>, Status> {
        let request = cri::ListPodSandboxMetricsRequest {};
        let pods = self.runtime.clone().list_pod_sandbox_metrics(request).await?.into_inner();
        let containers = pods.pod_metrics.iter().flat_map(|pod| &pod.container_metrics);
        let mut metrics =
            containers.filter(|container| container.container_id == id).flat_map(|found| &found.metrics);
        Ok(metrics.find(|metric| metric.name == name).and_then(|found| found.value).map(|value| value.value))
    }

    /// Waits until a container has exited, and gives its last status.
    pub async fn exited(&self, id: &str, deadline: Duration) -> Result<cri::ContainerStatus> {
        wait::until_async("the container's exit", deadline, || async {
            let status = self.status(id).await?;
            let state = cri::ContainerState::try_from(status.state)?;
            ensure!(state == cri::ContainerState::ContainerExited, "it is {state:?}");
            Ok(status)
        })
        .await
    }

    /// Runs a command in a container, with a deadline in seconds (0: none).
    pub async fn exec(&self, id: &str, command: &[&str], deadline: i64) -> Result<Output, Status> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: deadline };
        let answer = self.runtime.clone().exec_sync(request).await?.into_inner();
        Ok(Output {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// Runs a shell line in a container and gives its standard output; any other exit code than 0 is an error.
    pub async fn shell(&self, id: &str, line: &str) -> Result<String> {
        let output = self.exec(id, &["sh", "-c", line], 30).await?;
        if output.code != 0 {
            bail!("`{line}` ended with {}: {}{}", output.code, output.stdout, output.stderr);
        }
        Ok(output.stdout)
    }

    /// Pulls an image and gives its id.
    pub async fn pull(&self, image: &str) -> Result<String, Status> {
        let request = cri::PullImageRequest { image: Some(image_spec(image)), ..Default::default() };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// An image's status, or none where it is not here.
    pub async fn image(&self, image: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        Ok(self.images.clone().image_status(request).await?.into_inner().image)
    }

    /// Removes an image.
    pub async fn remove_image(&self, image: &str) -> Result<(), Status> {
        let request = cri::RemoveImageRequest { image: Some(image_spec(image)) };
        self.images.clone().remove_image(request).await.map(drop)
    }

    /// Path of a container's log.
    #[must_use]
    pub fn log_path(&self, pod: &str, container: &str) -> PathBuf {
        self.logs.join(pod).join(log_name(container))
    }
}

/// A container's configuration: a command on an image, logging to `<name>.log`.
#[must_use]
pub fn container(name: &str, image: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(image_spec(image)),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: log_name(name),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The security context of a container made by [`container`].
pub fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Checks that a call failed with that code and that its message names what was wrong.
pub fn refused<T: std::fmt::Debug>(
    what: &str,
    result: Result<T, Status>,
    code: tonic::Code,
    word: &str,
) -> Result<()> {
    let status = result.err().with_context(|| format!("{what} succeeded"))?;
    ensure!(status.code() == code, "{what}: {:?} instead of {code:?}: {}", status.code(), status.message());
    ensure!(status.message().contains(word), "{what}: {word:?} is not in {:?}", status.message());
    Ok(())
}

/// Sets the namespace modes of a pod and of the containers to be made in it.
#[must_use]
pub fn with_namespaces(
    mut pod: cri::PodSandboxConfig,
    options: cri::NamespaceOption,
) -> cri::PodSandboxConfig {
    let linux = pod.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options);
    pod
}

/// True once a daemon answers Version at `socket`.
pub fn answers(socket: &Path) -> Result<()> {
    let socket = socket.to_owned();
    let ask = move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = RuntimeServiceClient::new(channel(&socket).await?);
            client.version(cri::VersionRequest::default()).await?;
            Ok(())
        })
    };
    // A thread of its own: the caller may be inside a runtime already.
    std::thread::spawn(ask).join().map_err(|_| anyhow::anyhow!("the question panicked"))?
}

async fn channel(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let endpoint = Endpoint::try_from("http://cri.invalid")?.timeout(wait::scaled(CALL));
    endpoint.connect_with_connector(connector).await.context("connect to the CRI socket")
}

fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..Default::default() }
}

fn log_name(container: &str) -> String {
    format!("{container}.log")
}

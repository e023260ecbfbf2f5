//! CheckpointContainer: the container's state as an archive, through the OCI runtime's CRIU support.
//!
//! The container goes on. Containers are not restored from such archives here: they are for examination, and for
//! other tools.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::cri::{CheckpointContainerRequest, CheckpointContainerResponse};

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::host::{checkpoint, mount};
use crate::model::container::ContainerState;
use crate::steps::cri_config::invalid;
use crate::steps::pod_files;
use crate::store::container::{Container, ContainerRecord};

/// Longest time where the request names none.
const DEADLINE: Duration = Duration::from_secs(600);

/// Writes a running container's state to an archive at the location of the request.
pub async fn checkpoint_container(
    daemon: &Arc<Daemon>,
    request: CheckpointContainerRequest,
) -> Result<CheckpointContainerResponse, Error> {
    let container = daemon.container(&request.container_id)?;
    let location = PathBuf::from(&request.location);
    if !location.is_absolute() || location.file_name().is_none() {
        return Err(invalid("location", format!("expected an absolute path, got {:?}", request.location)));
    }
    let limit = match u64::try_from(request.timeout) {
        Ok(0) => DEADLINE,
        Ok(seconds) => Duration::from_secs(seconds).min(DEADLINE),
        Err(_) => {
            let reason = format!("expected 0 or more seconds, got {}", request.timeout);
            return Err(invalid("timeout", reason));
        }
    };
    let _operation = container.operation.lock().await;
    if !matches!(container.state(), ContainerState::Running { .. }) {
        let reason = format!("expected a running container, it is {}", container.state().word());
        return Err(denied(&container, reason));
    }
    let record = container.record();
    let oci = daemon.oci(&record.handler)?;
    let program = oci.path.clone();
    if let Some(missing) = blocking(move || checkpoint::missing(&program)).await? {
        return Err(denied(&container, format!("it cannot be checkpointed: {missing}")));
    }
    let images = daemon.paths.bundle(&container.id).join("checkpoint");
    let dumped = dump(&oci, &container, &images, limit).await;
    let archived = match dumped {
        Ok(()) => archive(daemon, &record, &images, location).await,
        Err(error) => Err(error),
    };
    let removed = blocking(move || mount::remove_tree(&images)).await?;
    archived.and(removed.map_err(Error::host("remove the images of a checkpoint")))?;
    Ok(CheckpointContainerResponse {})
}

async fn dump(
    oci: &crate::host::oci::OciRuntime,
    container: &Container,
    images: &Path,
    limit: Duration,
) -> Result<(), Error> {
    let directory = images.to_path_buf();
    blocking(move || pod_files::make_directory(&directory, 0o700))
        .await?
        .map_err(Error::host("make the directory of a checkpoint"))?;
    match tokio::time::timeout(limit, oci.checkpoint(container.id.as_str(), images)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => Err(Error::Internal(format!("checkpoint container {}: {reason}", container.id))),
        Err(_) => {
            let stage = format!("checkpointing container {}", container.id);
            Err(Error::DeadlineExceeded { stage, seconds: limit.as_secs() })
        }
    }
}

async fn archive(
    daemon: &Daemon,
    record: &ContainerRecord,
    images: &Path,
    location: PathBuf,
) -> Result<(), Error> {
    let metadata = record.metadata();
    let config = serde_json::json!({
        "id": record.id,
        "name": metadata.name,
        "rootfsImage": record.config.image.as_ref().map(|image| image.image.clone()),
        "rootfsImageRef": record.image_ref,
        "runtime": record.handler,
        "createdTime": record.created_at,
        "startedAt": record.state.started_at(),
    });
    let parts = checkpoint::Parts {
        config: config.to_string(),
        spec: daemon.paths.bundle(&record.id).join("config.json"),
        layer: daemon.paths.container(&record.id).join("upper"),
        images: images.to_path_buf(),
    };
    let name = location.display().to_string();
    blocking(move || parts.write(&location)).await?.map_err(Error::host(format!("write {name}")))
}

fn denied(container: &Container, reason: String) -> Error {
    Error::FailedPrecondition { kind: "container", id: container.id.to_string(), reason }
}

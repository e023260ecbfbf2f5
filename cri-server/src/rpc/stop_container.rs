//! StopContainer: the stop signal, a grace period, then SIGKILL. A stop with a shorter grace shortens a running one.

use std::sync::Arc;
use std::time::Duration;

use proto::cri::{StopContainerRequest, StopContainerResponse};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::error::{Error, chain};
use crate::model::Step;
use crate::model::container::ContainerState;
use crate::monitor::protocol::Target;
use crate::steps::cri_config::invalid;
use crate::steps::teardown;
use crate::store::container::Container;

/// Longest grace period: what a wait can express.
const LONGEST: u64 = 100 * 365 * 24 * 3600;

/// Stops a container. Idempotent; an unknown id is success.
pub async fn stop_container(
    daemon: &Arc<Daemon>,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Error> {
    let grace = u64::try_from(request.timeout)
        .map_err(|_| invalid("timeout", format!("expected 0 or more seconds, got {}", request.timeout)))?;
    let Some(container) = daemon.find_container(&request.container_id)? else {
        return Ok(StopContainerResponse {});
    };
    if container.state().stop() == Step::AlreadyDone {
        return Ok(StopContainerResponse {});
    }
    let grace = match container.state() {
        ContainerState::Running { .. } => Duration::from_secs(grace.min(LONGEST)),
        // A process that has not been started has nothing to finish.
        _not_started => Duration::ZERO,
    };
    if shorten(&container, Instant::now() + grace) && !grace.is_zero() {
        signal(daemon, &container).await;
    }
    stop(daemon, &container).await?;
    Ok(StopContainerResponse {})
}

/// Brings the kill forward; says whether this is the first stop.
fn shorten(container: &Container, kill_at: Instant) -> bool {
    let mut first = false;
    container.kill_at.send_if_modified(|current| {
        first = current.is_none();
        let earlier = current.is_none_or(|current| kill_at < current);
        if earlier {
            *current = Some(kill_at);
        }
        earlier
    });
    first
}

async fn signal(daemon: &Daemon, container: &Container) {
    let Some(monitor) =
        daemon.sandboxes.find(container.pod_id.as_str()).and_then(|sandbox| sandbox.monitor())
    else {
        return;
    };
    let target = Target::Container(container.id.to_string());
    if let Err(error) = monitor.signal(target, container.record().stop_signal).await {
        tracing::warn!(
            container = container.id.short(),
            error = chain(&error),
            "the stop signal cannot be sent"
        );
    }
}

/// Waits for the end, and kills when the time has come.
async fn stop(daemon: &Daemon, container: &Container) -> Result<(), Error> {
    let mut state = container.watch();
    let mut kill_at = container.kill_at.subscribe();
    loop {
        let at = kill_at.borrow_and_update().unwrap_or_else(Instant::now);
        tokio::select! {
            () = ended(&mut state) => return Ok(()),
            _shorter = kill_at.changed() => {}
            () = tokio::time::sleep_until(at) => return teardown::kill(daemon, container).await,
        }
    }
}

async fn ended(state: &mut watch::Receiver<ContainerState>) {
    // An error means that the container is gone altogether.
    state.wait_for(|state| state.is_exited()).await.map(drop).unwrap_or_default();
}

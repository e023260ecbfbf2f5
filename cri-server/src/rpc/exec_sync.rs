//! ExecSync: runs a command in a container and returns what it printed and how it ended.
//!
//! Output is capped and the rest drained, so that a command that prints without end neither blocks nor grows the
//! daemon. A background child that keeps the output open delays the answer by a bounded drain, no more.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use proto::cri::{ExecSyncRequest, ExecSyncResponse};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::{Error, chain};
use crate::host::fs::{Durability, write_atomic};
use crate::host::monitor::{Exec, ExecStdio, Monitor};
use crate::model::container::ContainerState;
use crate::model::id::ContainerId;
use crate::monitor::protocol::{Event, Target};
use crate::spec;
use crate::steps::cri_config::{invalid, missing};
use crate::steps::teardown;
use crate::store::container::Container;

/// Most bytes returned of each stream.
const OUTPUT_LIMIT: usize = 16 << 20;
/// How long output is awaited after the command has ended.
const DRAIN: Duration = Duration::from_millis(500);
/// How long a command may run whose request names no timeout.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs a command to its end, or to the request's timeout.
pub async fn exec_sync(daemon: &Arc<Daemon>, request: ExecSyncRequest) -> Result<ExecSyncResponse, Error> {
    if request.cmd.is_empty() {
        return Err(missing("cmd"));
    }
    let seconds = u64::try_from(request.timeout)
        .map_err(|_| invalid("timeout", format!("expected 0 or more seconds, got {}", request.timeout)))?;
    let container = daemon.container(&request.container_id)?;
    if !matches!(container.state(), ContainerState::Running { .. }) {
        let reason = format!("expected a running container, it is {}", container.state().word());
        return Err(Error::FailedPrecondition { kind: "container", id: container.id.to_string(), reason });
    }
    let monitor =
        daemon.sandbox(container.pod_id.as_str())?.monitor().ok_or_else(|| Error::FailedPrecondition {
            kind: "container",
            id: container.id.to_string(),
            reason: "its monitor is gone".into(),
        })?;
    let deadline =
        Instant::now() + if seconds == 0 { FOREVER } else { Duration::from_secs(seconds).min(FOREVER) };
    let command = Command { monitor, exec_id: ContainerId::generate().to_string(), deadline, seconds };
    let process = write_process(daemon, &container, &command.exec_id, request.cmd).await?;
    let result = command.run(&container, &process).await;
    if let Err(error) = std::fs::remove_file(&process) {
        tracing::debug!(path = %process.display(), %error, "the process file of an exec stays until the container goes");
    }
    result
}

struct Command {
    monitor: Monitor,
    exec_id: String,
    deadline: Instant,
    seconds: u64,
}

impl Command {
    async fn run(&self, container: &Container, process: &std::path::Path) -> Result<ExecSyncResponse, Error> {
        let doing = || format!("make the pipes of an exec in container {}", container.id);
        let (stdout, child_stdout) = output_pipe().map_err(Error::host(doing()))?;
        let (stderr, child_stderr) = output_pipe().map_err(Error::host(doing()))?;
        let stdin = OwnedFd::from(std::fs::File::open("/dev/null").map_err(Error::host("open /dev/null"))?);
        let (mut events, reconnects) = (self.monitor.events(), self.monitor.reconnects());
        let ended = watch::Sender::new(false);
        let stdout = tokio::spawn(collect(stdout, ended.subscribe()));
        let stderr = tokio::spawn(collect(stderr, ended.subscribe()));
        let exec = Exec {
            exec_id: self.exec_id.clone(),
            container_id: container.id.to_string(),
            process: process.to_path_buf(),
            stdio: ExecStdio::Fds([stdin, child_stdout, child_stderr]),
        };
        let exit_code = tokio::select! {
            result = async {
                self.monitor.exec(exec).await?;
                self.exit_code(&mut events, reconnects).await
            } => result,
            () = tokio::time::sleep_until(self.deadline) => self.timed_out().await,
        };
        ended.send_replace(true);
        let (stdout, stderr) = tokio::join!(stdout, stderr);
        Ok(ExecSyncResponse {
            exit_code: exit_code?,
            stdout: stdout.unwrap_or_default(),
            stderr: stderr.unwrap_or_default(),
        })
    }

    /// Waits for the end of the command; also notices one that was told while there was no connection.
    async fn exit_code(
        &self,
        events: &mut broadcast::Receiver<Event>,
        mut reconnects: watch::Receiver<u64>,
    ) -> Result<i32, Error> {
        loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                () = self.monitor.gone() => Ok(Event::Gone),
                _found_again = reconnects.changed() => Err(RecvError::Lagged(0)),
            };
            match event {
                Ok(Event::ExecExited { exec_id, exit_code }) if exec_id == self.exec_id => {
                    return Ok(exit_code);
                }
                Ok(Event::Gone) | Err(RecvError::Closed) => {
                    return Err(Error::Internal("the pod's monitor died while the command ran".into()));
                }
                Err(RecvError::Lagged(_)) if !self.runs().await? => {
                    return self.told_before(events);
                }
                Err(RecvError::Lagged(_)) | Ok(_) => {}
            }
        }
    }

    async fn runs(&self) -> Result<bool, Error> {
        Ok(self.monitor.state().await?.execs.iter().any(|exec| exec.exec_id == self.exec_id))
    }

    /// The end among the events that came before an answer which says that the command has ended.
    fn told_before(&self, events: &mut broadcast::Receiver<Event>) -> Result<i32, Error> {
        loop {
            match events.try_recv() {
                Ok(Event::ExecExited { exec_id, exit_code }) if exec_id == self.exec_id => {
                    return Ok(exit_code);
                }
                Ok(_) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => {
                    return Err(Error::Internal("the end of the command was missed".into()));
                }
            }
        }
    }

    async fn timed_out(&self) -> Result<i32, Error> {
        if let Err(error) = self.monitor.signal(Target::Exec(self.exec_id.clone()), libc::SIGKILL).await {
            tracing::warn!(error = chain(&error), "a command that timed out cannot be killed");
        }
        Err(Error::DeadlineExceeded { stage: "the command".into(), seconds: self.seconds })
    }
}

async fn write_process(
    daemon: &Arc<Daemon>,
    container: &Container,
    exec_id: &str,
    cmd: Vec<String>,
) -> Result<std::path::PathBuf, Error> {
    let bundle = daemon.paths.bundle(&container.id);
    let path = bundle.join(teardown::process_file(exec_id));
    let target = path.clone();
    blocking(move || {
        let config = bundle.join("config.json");
        let bytes = std::fs::read(&config).map_err(Error::host(format!("read {}", config.display())))?;
        let spec = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Internal(format!("{} is damaged: {error}", config.display())))?;
        let process = spec::exec_process(&spec, cmd, spec::Terminal::None)?;
        let json = serde_json::to_vec(&process).map_err(|error| Error::Internal(error.to_string()))?;
        write_atomic(&target, &json, 0o600, Durability::Cached)
            .map_err(Error::host(format!("write {}", target.display())))
    })
    .await??;
    Ok(path)
}

fn output_pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

/// Reads to the end, or until `DRAIN` after the command's end; keeps the first `OUTPUT_LIMIT` bytes.
async fn collect(mut pipe: pipe::Receiver, mut ended: watch::Receiver<bool>) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0u8; 64 << 10];
    let drained = async {
        if ended.wait_for(|ended| *ended).await.is_ok() {
            tokio::time::sleep(DRAIN).await;
        }
    };
    tokio::pin!(drained);
    loop {
        tokio::select! {
            biased;
            read = pipe.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return kept,
                Ok(length) => {
                    let room = OUTPUT_LIMIT - kept.len();
                    kept.extend_from_slice(&buffer[..length.min(room)]);
                }
            },
            () = &mut drained => return kept,
        }
    }
}

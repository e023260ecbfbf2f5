//! A command in a running container, for ExecSync and for streams: started once, waited for, and killed with its
//! session when nobody waits for it any more.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::{Error, chain};
use crate::host::fs::{Durability, write_atomic};
use crate::host::monitor::{Exec, ExecStdio, Monitor, MonitorError, MonitorState};
use crate::model::container::ContainerState;
use crate::model::id::ContainerId;
use crate::monitor::protocol::{Event, Target};
use crate::spec::oci::ConsoleSize;
use crate::spec::{self, Terminal};
use crate::steps::teardown;
use crate::store::container::Container;

/// How long a lost connection to the monitor may take to be found again.
const FOUND_AGAIN: Duration = Duration::from_secs(10);
/// How long a killed command may take to end.
const KILLED: Duration = Duration::from_secs(2);

/// The container of a request, which has to run.
pub fn running(daemon: &Daemon, id: &str) -> Result<(Arc<Container>, Monitor), Error> {
    let container = daemon.container(id)?;
    let refuse = |reason: String| Error::FailedPrecondition {
        kind: "container",
        id: container.id.to_string(),
        reason,
    };
    if !matches!(container.state(), ContainerState::Running { .. }) {
        return Err(refuse(format!("expected a running container, it is {}", container.state().word())));
    }
    let monitor = daemon.sandbox(container.pod_id.as_str())?.monitor();
    let monitor = monitor.ok_or_else(|| refuse("its monitor is gone".into()))?;
    Ok((container, monitor))
}

/// A command. Dropping it kills what is left of it.
pub struct Command {
    monitor: Monitor,
    exec_id: String,
    container_id: ContainerId,
    process: ProcessFile,
    events: broadcast::Receiver<Event>,
    reconnects: watch::Receiver<u64>,
    progress: Progress,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing of it runs.
    Prepared,
    /// It may run.
    Started,
    /// It has ended with this code.
    Ended(i32),
}

/// What a command has for a terminal.
#[derive(Debug, Clone, Copy)]
pub enum Console {
    /// None.
    Absent,
    /// One, of this size if it is known.
    Present(Option<ConsoleSize>),
}

impl Command {
    /// Writes what the OCI runtime has to know. Nothing runs yet.
    pub async fn prepare(
        daemon: &Arc<Daemon>,
        container: &Container,
        monitor: Monitor,
        command_line: Vec<String>,
        console: Console,
    ) -> Result<Self, Error> {
        let exec_id = ContainerId::generate().to_string();
        let bundle = daemon.paths.bundle(&container.id);
        let process = ProcessFile(bundle.join(teardown::process_file(&exec_id)));
        // Goes with the one who writes it where nobody waits for that.
        let write = move || write_process(&bundle, &process.0, command_line, console).map(|()| process);
        let process = blocking(write).await??;
        Ok(Self {
            events: monitor.events(),
            reconnects: monitor.reconnects(),
            container_id: container.id.clone(),
            progress: Progress::Prepared,
            monitor,
            exec_id,
            process,
        })
    }

    /// Starts it; with a terminal its master comes back.
    pub async fn start(&mut self, stdio: ExecStdio) -> Result<Option<OwnedFd>, Error> {
        let exec = Exec {
            exec_id: self.exec_id.clone(),
            container_id: self.container_id.to_string(),
            process: self.process.0.clone(),
            stdio,
        };
        self.progress = Progress::Started;
        let started = self.monitor.exec(exec).await;
        self.process.remove();
        match started {
            Ok(execed) => Ok(execed.terminal),
            Err(error @ MonitorError::Lost { .. }) => self.started_unheard(error).await.map(|()| None),
            Err(error) => {
                if matches!(error, MonitorError::Refused { .. }) {
                    self.progress = Progress::Prepared;
                }
                Err(error.into())
            }
        }
    }

    /// The answer was lost with the connection: whether the command runs is asked once there is one again.
    async fn started_unheard(&mut self, lost: MonitorError) -> Result<(), Error> {
        let found = tokio::select! {
            found = tokio::time::timeout(FOUND_AGAIN, self.reconnects.changed()) => matches!(found, Ok(Ok(()))),
            () = self.monitor.gone() => false,
        };
        if !found {
            return Err(lost.into());
        }
        let state = self.monitor.state().await?;
        let runs = state.execs.iter().any(|exec| exec.exec_id == self.exec_id && exec.pid.is_some());
        match self.end_in(&state) {
            Some(code) => self.progress = Progress::Ended(code),
            None if runs => {}
            None => return Err(lost.into()),
        }
        Ok(())
    }

    /// Waits for the end; also finds one that was told while there was no connection. May be called again.
    pub async fn exit_code(&mut self) -> Result<i32, Error> {
        loop {
            if let Progress::Ended(code) = self.progress {
                return Ok(code);
            }
            let event = tokio::select! {
                biased;
                event = self.events.recv() => event,
                () = self.monitor.gone() => Ok(Event::Gone),
                _found_again = self.reconnects.changed() => Err(RecvError::Lagged(0)),
            };
            match event {
                Ok(event) if self.is_end(&event) => {}
                Ok(Event::Gone) | Err(RecvError::Closed) => {
                    self.progress = Progress::Prepared;
                    return Err(Error::Internal("the pod's monitor died while the command ran".into()));
                }
                Err(RecvError::Lagged(_)) => self.look_for_end().await?,
                Ok(_) => {}
            }
        }
    }

    fn is_end(&mut self, event: &Event) -> bool {
        match event {
            Event::ExecExited { exec_id, exit_code } if *exec_id == self.exec_id => {
                self.progress = Progress::Ended(*exit_code);
                true
            }
            _ => false,
        }
    }

    /// Asks the monitor after events were missed.
    async fn look_for_end(&mut self) -> Result<(), Error> {
        let state = match self.monitor.state().await {
            // Another reconnect, or the monitor's end, follows.
            Err(MonitorError::Lost { .. }) => return Ok(()),
            state => state?,
        };
        if state.execs.iter().any(|exec| exec.exec_id == self.exec_id) {
            return Ok(());
        }
        if let Some(code) = self.end_in(&state) {
            self.progress = Progress::Ended(code);
            return Ok(());
        }
        // An older monitor remembers no ends: it may be among the events that came before its answer.
        loop {
            match self.events.try_recv() {
                Ok(event) if self.is_end(&event) => return Ok(()),
                Ok(_) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => {
                    self.progress = Progress::Prepared;
                    return Err(Error::Internal("the end of the command was missed".into()));
                }
            }
        }
    }

    fn end_in(&self, state: &MonitorState) -> Option<i32> {
        state.ended_execs.iter().find(|end| end.exec_id == self.exec_id).map(|end| end.exit_code)
    }

    /// Kills it with its session, or its start, and waits a moment for its end.
    pub async fn kill(&mut self) {
        if self.progress == Progress::Started {
            kill(&self.monitor, self.exec_id.clone()).await;
            let _killed_is_enough = tokio::time::timeout(KILLED, self.exit_code()).await;
        }
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        if self.progress == Progress::Started
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (monitor, exec_id) = (self.monitor.clone(), self.exec_id.clone());
            runtime.spawn(async move { kill(&monitor, exec_id).await });
        }
    }
}

async fn kill(monitor: &Monitor, exec_id: String) {
    if let Err(error) = monitor.signal(Target::Exec(exec_id), libc::SIGKILL).await {
        tracing::warn!(error = chain(&error), "a command that nobody waits for cannot be killed");
    }
}

/// What the OCI runtime reads of a command; it is not left behind.
struct ProcessFile(PathBuf);

impl ProcessFile {
    fn remove(&self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(path = %self.0.display(), %error, "stays until the container goes");
            }
            _removed => {}
        }
    }
}

impl Drop for ProcessFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn write_process(bundle: &Path, target: &Path, line: Vec<String>, console: Console) -> Result<(), Error> {
    let config = bundle.join("config.json");
    let bytes = std::fs::read(&config).map_err(Error::host(format!("read {}", config.display())))?;
    let spec = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Internal(format!("{} is damaged: {error}", config.display())))?;
    let process = match console {
        Console::Absent => spec::exec_process(&spec, line, Terminal::None)?,
        Console::Present(size) => {
            let process = spec::exec_process(&spec, line, Terminal::Attached)?;
            spec::oci::Process { console_size: size, ..process }
        }
    };
    let json = serde_json::to_vec(&process).map_err(|error| Error::Internal(error.to_string()))?;
    write_atomic(target, &json, 0o600, Durability::Cached)
        .map_err(Error::host(format!("write {}", target.display())))
}

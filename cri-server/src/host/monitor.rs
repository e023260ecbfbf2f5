//! Daemon side of the monitor protocol: starts a pod's monitor or finds it again, calls it, hears its events.
//!
//! Every wait has a deadline: a wedged monitor fails its own pod's calls and nothing else. Dropping a call's future
//! does not stop the monitor from doing what it was asked to do.

mod error;
mod link;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::{broadcast, watch};

use crate::host::program::ProgramCopy;
use crate::monitor::protocol::{self, Answer, AttachContainer, Call, ExecProcess, ToMonitor};
pub use crate::monitor::protocol::{
    ContainerCgroup, ContainerState, ContainerStatus, CreateContainer, Event, ExecEnd, ExecState, Failure,
    FailureKind, MonitorState, NamespaceKind, NewNamespace, PodSetup, Runtime, Target, Welcome,
};
pub use crate::monitor::record::{ExitRecord, RecordError};
pub use error::MonitorError;
use link::Link;

/// How long a call may take that does not run the OCI runtime.
const QUICK: Duration = Duration::from_secs(5);
/// How long a call may take that does. The monitor bounds nothing itself: a delete ends what hangs.
const RUNTIME: Duration = Duration::from_secs(120);
/// How long a monitor may take to make its sandbox.
const SETUP: Duration = Duration::from_secs(20);
/// How long a killed monitor may take to end.
const KILLED: Duration = Duration::from_secs(10);
/// How long a monitor may take to greet.
const ATTACH: Duration = Duration::from_secs(2);

/// A pod's monitor. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Monitor {
    link: Link,
}

/// A process to start in a running container.
#[derive(Debug)]
pub struct Exec {
    /// Chosen by the daemon, unique in the pod.
    pub exec_id: String,
    /// The container.
    pub container_id: String,
    /// File with the OCI `process` object; may be removed when the call has returned.
    pub process: PathBuf,
    /// Where its streams go.
    pub stdio: ExecStdio,
}

/// The streams of an exec.
#[derive(Debug)]
pub enum ExecStdio {
    /// Standard input, output and error of the process.
    Fds([OwnedFd; 3]),
    /// A terminal, as the process object says too; its master comes back in [`Execed`].
    Terminal,
}

/// A container was made and waits for its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// Process id of its main process.
    pub pid: i32,
}

/// A container was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Nanoseconds since the epoch.
    pub started_at_ns: i64,
}

/// A process was started in a container; [`Event::ExecExited`] follows.
#[derive(Debug)]
pub struct Execed {
    /// Process id.
    pub pid: i32,
    /// Master of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
}

/// A client that joins a container's streams.
#[derive(Debug)]
pub struct Attach {
    /// Chosen by the daemon, unique in the pod; [`Event::Detached`] names it.
    pub attach_id: String,
    /// The container.
    pub container_id: String,
    /// Whether the container has a terminal.
    pub terminal: bool,
    /// Whether the client wants to write.
    pub stdin: bool,
    /// Where copies of standard output go: a stream socket, whose buffer is what the client may lag behind.
    pub stdout: Option<OwnedFd>,
    /// Where copies of standard error go.
    pub stderr: Option<OwnedFd>,
}

/// What joins a client to a container beside its sockets.
#[derive(Debug)]
pub enum Attached {
    /// The writing end of the container's input, where it has one to give.
    Pipes(Option<OwnedFd>),
    /// Master of the container's terminal: to be resized, and written to if `writable`; never to be read.
    Terminal {
        /// The master.
        master: OwnedFd,
        /// Whether the client may write.
        writable: bool,
    },
}

impl Monitor {
    /// Starts a monitor and returns when the pod's namespaces are made and pinned. On failure nothing of them is left.
    ///
    /// A daemon that dies in the middle leaves a finished sandbox with a socket to attach to, or nothing.
    pub async fn spawn(binary: &Path, setup: &PodSetup) -> Result<Self, MonitorError> {
        let failed = |source| MonitorError::Spawn { binary: binary.to_owned(), source };
        let (near, far) = UnixStream::pair().map_err(failed)?;
        let mut child = command(binary, far).spawn().map_err(failed)?;
        // Reaped whenever it ends, as long as this daemon lives.
        tokio::spawn(async move { child.wait().await });
        let hello = ToMonitor::Setup { version: protocol::VERSION, setup: setup.clone() };
        let stage = "setting up the sandbox";
        let link = within(SETUP, stage, Link::open(near, setup.dir.join(protocol::SOCKET), &hello)).await??;
        Ok(Self { link })
    }

    /// Finds the monitor behind a socket, after a restart of the daemon.
    ///
    /// Subscribe to the events first and ask for the state then: nothing is missed that way.
    pub async fn attach(socket: &Path) -> Result<Self, MonitorError> {
        let hello = ToMonitor::Hello { version: protocol::VERSION };
        let open = async {
            let stream = connect(socket).map_err(|source| MonitorError::attach(socket, source))?;
            Link::open(stream, socket.to_owned(), &hello).await
        };
        Ok(Self { link: within(ATTACH, "attaching to the monitor", open).await?? })
    }

    /// The process that holds a pod's monitor lock: the way to a monitor that does not answer. `dir` is the pod's.
    pub fn holder(dir: &Path) -> io::Result<Option<i32>> {
        let file = match std::fs::File::options().write(true).open(dir.join(protocol::LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let lock = rustix::process::Flock::from(rustix::process::FlockType::WriteLock);
        let holder = rustix::process::fcntl_getlk(&file, &lock)?.and_then(|lock| lock.pid);
        Ok(holder.map(|pid| pid.as_raw_nonzero().get()))
    }

    /// Kills the monitor of a pod that does not answer, with its pod init, and waits for its end; whether there was
    /// one. Its containers live on: kill them through their cgroups. Blocks.
    pub fn kill(dir: &Path) -> io::Result<bool> {
        let Some(pid) = Self::holder(dir)?.and_then(Pid::from_raw) else { return Ok(false) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            opened => opened?,
        };
        // Still the holder after it was opened: the number was not used anew in between.
        if Self::holder(dir)? != Some(pid.as_raw_nonzero().get()) {
            return Ok(false);
        }
        match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            sent => sent?,
        }
        link::wait_for_end(&pidfd, KILLED).map(|()| true)
    }

    /// What the monitor said first.
    pub fn welcome(&self) -> &Welcome {
        self.link.welcome()
    }

    /// Runs the OCI runtime's create. On failure nothing of the container is left with monitor and OCI runtime.
    pub async fn create(&self, spec: CreateContainer) -> Result<Created, MonitorError> {
        self.create_by(spec, None).await
    }

    /// The same, where the OCI runtime is run from a copy, now and for the container's whole life.
    pub async fn create_by(
        &self,
        mut spec: CreateContainer,
        program: Option<&ProgramCopy>,
    ) -> Result<Created, MonitorError> {
        const STAGE: &str = "creating the container";
        let fds: Vec<OwnedFd> = program.and_then(|program| program.share().ok()).into_iter().collect();
        spec.copy_of = program.filter(|_| !fds.is_empty()).map(|program| program.original().clone());
        match self.link.call((STAGE, RUNTIME), Call::Create(Box::new(spec)), fds).await?.0 {
            Answer::Created { pid } => Ok(Created { pid }),
            other => Err(MonitorError::unexpected(STAGE, &other)),
        }
    }

    /// Runs the OCI runtime's start.
    pub async fn start(&self, id: &str) -> Result<Started, MonitorError> {
        match self.call("starting the container", RUNTIME, Call::Start { id: id.to_owned() }).await? {
            Answer::Started { started_at_ns } => Ok(Started { started_at_ns }),
            other => Err(MonitorError::unexpected("starting the container", &other)),
        }
    }

    /// Starts a process in a running container. An error means that it does not run.
    pub async fn exec(&self, exec: Exec) -> Result<Execed, MonitorError> {
        let (terminal, fds) = match exec.stdio {
            ExecStdio::Fds(fds) => (false, Vec::from(fds)),
            ExecStdio::Terminal => (true, Vec::new()),
        };
        let Exec { exec_id, container_id, process, .. } = exec;
        let call = Call::Exec(ExecProcess { exec_id, container_id, process, terminal });
        let (answer, fds) = self.link.call(("executing in the container", RUNTIME), call, fds).await?;
        match answer {
            Answer::Execed { pid } => Ok(Execed { pid, terminal: fds.into_iter().next() }),
            other => Err(MonitorError::unexpected("executing in the container", &other)),
        }
    }

    /// Joins a client to a container's streams.
    pub async fn attach_to(&self, attach: Attach) -> Result<Attached, MonitorError> {
        let Attach { attach_id, container_id, terminal, stdin, stdout, stderr } = attach;
        let wants = AttachContainer {
            attach_id,
            container_id,
            stdin,
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
        };
        let fds = stdout.into_iter().chain(stderr).collect();
        let stage = "attaching to the container";
        let (answer, fds) = self.link.call((stage, QUICK), Call::Attach(wants), fds).await?;
        match (answer, fds.into_iter().next()) {
            (Answer::Attached { stdin }, Some(master)) if terminal => {
                Ok(Attached::Terminal { master, writable: stdin })
            }
            (Answer::Attached { .. }, stdin) if !terminal => Ok(Attached::Pipes(stdin)),
            (other, _) => Err(MonitorError::unexpected(stage, &other)),
        }
    }

    /// Sends a signal to a main process or an exec; SIGKILL ends an exec with its session. Already gone is success.
    pub async fn signal(&self, target: Target, signal: i32) -> Result<(), MonitorError> {
        self.done("signalling a process", QUICK, Call::Signal { target, signal }).await
    }

    /// Kills the container, and a create or start of it that hangs, and runs the OCI runtime's `delete --force`.
    /// When this returns its exit is recorded. Unknown is success.
    pub async fn delete(&self, id: &str) -> Result<(), MonitorError> {
        self.done("deleting the container", RUNTIME, Call::Delete { id: id.to_owned() }).await
    }

    /// Opens the log file anew: when this returns the new file exists and the old one gets no more lines.
    pub async fn reopen_log(&self, id: &str) -> Result<(), MonitorError> {
        self.done("reopening the log", QUICK, Call::ReopenLog { id: id.to_owned() }).await
    }

    /// All that the monitor knows.
    pub async fn state(&self) -> Result<MonitorState, MonitorError> {
        match self.call("asking for the state", QUICK, Call::State).await? {
            Answer::State(state) => Ok(*state),
            other => Err(MonitorError::unexpected("asking for the state", &other)),
        }
    }

    /// Kills and deletes what is left, ends the pod's init and the monitor. Pins stay. [`Event::Gone`] follows.
    pub async fn shutdown(&self) -> Result<(), MonitorError> {
        self.done("shutting the monitor down", RUNTIME, Call::Shutdown).await
    }

    /// Events from now on. A receiver that lags asks for the state.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.link.events()
    }

    /// How often the connection was lost and found again: events may have been missed each time.
    pub fn reconnects(&self) -> watch::Receiver<u64> {
        self.link.reconnects()
    }

    /// Returns when the monitor is no more, at once if it is so already.
    pub async fn gone(&self) {
        self.link.gone().await;
    }

    async fn call(&self, stage: &'static str, limit: Duration, call: Call) -> Result<Answer, MonitorError> {
        Ok(self.link.call((stage, limit), call, Vec::new()).await?.0)
    }

    async fn done(&self, stage: &'static str, limit: Duration, call: Call) -> Result<(), MonitorError> {
        self.call(stage, limit, call).await.map(drop)
    }
}

/// The monitor as a child that keeps nothing of the daemon: its environment may hold credentials of registries.
fn command(binary: &Path, connection: UnixStream) -> tokio::process::Command {
    #[expect(clippy::disallowed_methods, reason = "the one place that starts monitors")]
    let mut command = tokio::process::Command::new(binary);
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    command.arg("serve").env_clear().env("PATH", path);
    command.stdin(OwnedFd::from(connection)).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Never waits: the socket has a backlog. The directory is named by descriptor, a socket's path being short.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let directory = crate::host::fs::open_root(socket.parent().unwrap_or(Path::new(".")))?;
    let path = protocol::socket_in(directory.as_fd());
    let address = rustix::net::SocketAddrUnix::new(path.as_path())?;
    let stream = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&stream, &address)?;
    Ok(UnixStream::from(stream))
}

async fn within<T>(
    limit: Duration,
    stage: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, MonitorError> {
    tokio::time::timeout(limit, work).await.map_err(|_| MonitorError::Deadline { stage, limit })
}

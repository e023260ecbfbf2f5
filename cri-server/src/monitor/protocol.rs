//! What the daemon and a pod's monitor say to each other: pure types, JSON on the wire (`wire` has the framing).
//!
//! Old monitors outlive an upgrade of the daemon: fields are only added, with a default; a request that a monitor
//! does not know is answered with [`FailureKind::Unsupported`]; [`VERSION`] changes only when that is not enough.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::record::ExitRecord;
use crate::host::program::FileIdentity;
use crate::model::id::{ContainerId, PodId};
use crate::model::id_range::IdRange;
use crate::spec::MaskedEqual;

mod envelope;

pub use envelope::{Failure, FailureKind, FromMonitor, ToMonitor, Welcome};

/// Version of this protocol, first thing said in both directions.
pub const VERSION: u32 = 1;

/// File name of the monitor's socket inside the pod's directory.
pub const SOCKET: &str = "monitor.sock";

/// File name of the lock that the monitor holds as long as it lives.
pub const LOCK: &str = "monitor.lock";

/// The socket's path by a descriptor of the pod's directory: a socket address has room for 107 bytes only.
pub fn socket_in(directory: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}

/// What a daemon asks of a monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Run the OCI runtime's `create`. Answered by [`Answer::Created`].
    Create(Box<CreateContainer>),
    /// Run the OCI runtime's `start`. Answered by [`Answer::Started`].
    Start { id: String },
    /// Start a process in a running container; stdin, stdout and stderr come as three descriptors with the frame
    /// unless `terminal`. Answered by [`Answer::Execed`].
    Exec(ExecProcess),
    /// Join the streams of a container that has not ended. One stream socket for each wanted output comes with the
    /// frame, standard output first. Answered by [`Answer::Attached`].
    Attach(AttachContainer),
    /// Send a signal. Already gone is success. SIGKILL for an exec takes the processes of its session along.
    Signal { target: Target, signal: i32 },
    /// Kill the container and run the OCI runtime's `delete --force`. Unknown is success.
    Delete { id: String },
    /// Open the container's log file anew at its path.
    ReopenLog { id: String },
    /// Answered by [`Answer::State`].
    State,
    /// Kill and delete all containers, end the pod's init and the monitor. Pins stay.
    Shutdown,
}

/// The successful end of a [`Call`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The container's main process waits for its start.
    Created { pid: i32 },
    /// The container's main process runs. Nanoseconds since the epoch.
    Started { started_at_ns: i64 },
    /// The process runs (or has ended already: its exit follows as an event). With a terminal, the master comes as
    /// a descriptor with the frame.
    Execed { pid: i32 },
    /// The outputs are fed from now on. With the frame comes the master of the container's terminal (to be written
    /// to and resized, never read), or the writing end of its input if `stdin`. `stdin` is false where the container
    /// has no input, or where it could be had only once.
    Attached { stdin: bool },
    /// All that the monitor knows.
    State(Box<MonitorState>),
    /// Nothing to tell.
    Done,
}

/// What happens without being asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container was started, and whoever asked for it is gone. Nanoseconds since the epoch.
    ContainerStarted { id: String, started_at_ns: i64 },
    /// A container's main process ended; its exit record is on disk.
    ContainerExited(ExitRecord),
    /// A process started by [`Call::Exec`] ended. 128 + signal when killed.
    ExecExited { exec_id: String, exit_code: i32 },
    /// A client of [`Call::Attach`] did not read for so long that its sockets are full. They have ended; what they
    /// hold is the output up to then.
    Detached { attach_id: String },
    /// The pod's init ended, and with it everything in the pod's PID namespace.
    PodInitExited,
    /// The monitor is no more. Made by the daemon's side, never sent.
    #[serde(skip)]
    Gone,
}

/// What a sandbox is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodSetup {
    /// The pod sandbox's id.
    pub pod_id: PodId,
    /// The pod's state directory; exists and belongs to root alone.
    pub dir: PathBuf,
    /// Namespaces to make, all in one clone. The kernel makes a user namespace first, so it owns the others.
    pub namespaces: Vec<NewNamespace>,
    /// Ids of a new user namespace; there if and only if one is made.
    #[serde(default)]
    pub ids: Option<IdRange>,
    /// Host name; needs a new UTS namespace.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Sysctls, each of a namespace that is made here.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
}

/// A namespace to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewNamespace {
    /// Which.
    pub kind: NamespaceKind,
    /// Where it is pinned by a bind mount. Does not exist yet.
    pub pin: PathBuf,
}

/// Kinds of namespaces that a sandbox may have of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceKind {
    /// Network.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Processes; brings the pod's init with it.
    Pid,
    /// Users and groups.
    User,
}

/// The OCI runtime that serves a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Path of the program.
    pub path: PathBuf,
    /// Global arguments before the verb, such as `--systemd-cgroup`.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its state directory (`--root`).
    pub root: PathBuf,
}

/// Everything that a monitor needs to know about a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateContainer {
    /// The container's id.
    pub id: ContainerId,
    /// OCI bundle directory.
    pub bundle: PathBuf,
    /// OCI runtime.
    pub runtime: Runtime,
    /// Whether the bundle asks for a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Whether stdin stays open for an attach; `/dev/null` otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// User and group that own its pipes, so that it may open them again as `/dev/stdout`; absent = root.
    #[serde(default)]
    pub stdio_owner: Option<u32>,
    /// Whether stdin belongs to the first attach that wants it: it ends with that.
    #[serde(default)]
    pub stdin_once: bool,
    /// CRI log file; output is read and dropped without one. Its directory exists.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// Longest content of one log line, bytes; longer lines are split.
    #[serde(default = "default_log_line_limit")]
    pub log_line_limit: u32,
    /// The container's cgroup, once the runtime has made it.
    #[serde(default)]
    pub cgroup: ContainerCgroup,
    /// Whether all that is left in the cgroup is killed when the main process ends: needed where the PID namespace
    /// is not the container's own.
    #[serde(default)]
    pub kill_cgroup: bool,
    /// Where the exit record goes.
    pub exit_file: PathBuf,
    /// The runtime's file that the descriptor is a sealed copy of which comes with the frame, if one does.
    #[serde(default)]
    pub copy_of: Option<FileIdentity>,
    /// How the monitor itself starts commands in it; absent where the OCI runtime does.
    #[serde(default)]
    pub entry: Option<Entry>,
    /// Copied into the exit record, to make it self-contained. At most 64 KiB as JSON.
    #[serde(default)]
    pub identity: serde_json::Value,
}

/// The longest content of a log line where nobody says otherwise, bytes.
pub fn default_log_line_limit() -> u32 {
    16384
}

/// What the monitor needs to start commands in a container without the OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The container's cgroup in every hierarchy; those that it has not are passed over.
    pub cgroups: Vec<PathBuf>,
    /// How the bundle's filter spells masks.
    pub masks: MaskedEqual,
}

/// Where a container's cgroup shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCgroup {
    /// File with the line `oom_kill N`: `memory.events` (v2) or `memory.oom_control` (v1).
    #[serde(default)]
    pub oom_counter: Option<PathBuf>,
    /// The same file of the pod's cgroup, where the container's own may go before its end is seen, and the kernel
    /// counts in both.
    #[serde(default)]
    pub pod_oom_counter: Option<PathBuf>,
    /// Directories whose processes are the container's: the v2 directory, or on v1 the freezer's.
    #[serde(default)]
    pub directories: Vec<PathBuf>,
}

/// A process to start in a running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecProcess {
    /// Chosen by the daemon, unique in the pod.
    pub exec_id: String,
    /// The container.
    pub container_id: String,
    /// File with the OCI `process` object.
    pub process: PathBuf,
    /// Whether the process object asks for a terminal.
    #[serde(default)]
    pub terminal: bool,
}

/// A client that joins a container's streams.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttachContainer {
    /// Chosen by the daemon, unique in the pod.
    pub attach_id: String,
    /// The container.
    pub container_id: String,
    /// Whether it wants to write to standard input.
    pub stdin: bool,
    /// Whether a descriptor for standard output, or all of a terminal, comes along.
    pub stdout: bool,
    /// Whether a descriptor for standard error comes along.
    pub stderr: bool,
}

/// Whom a signal is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A container's main process.
    Container(String),
    /// A process started by [`Call::Exec`]; while the OCI runtime still starts it, SIGKILL ends that attempt.
    Exec(String),
}

/// All that a monitor knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MonitorState {
    /// [`VERSION`] of the monitor.
    pub version: u32,
    /// Process id of the monitor.
    pub monitor_pid: i32,
    /// Process id of the pod's init, where the pod has a PID namespace of its own.
    pub pod_init: Option<i32>,
    /// Containers that are not deleted.
    pub containers: Vec<ContainerState>,
    /// Execs that run.
    pub execs: Vec<ExecState>,
    /// The last execs that ended, oldest first: for a daemon that missed the event.
    #[serde(default)]
    pub ended_execs: Vec<ExecEnd>,
}

/// A container as its monitor sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// How far it is.
    pub status: ContainerStatus,
    /// Bytes of output that could not be written to the log file (disk full, I/O error).
    #[serde(default)]
    pub log_bytes_lost: u64,
}

/// How far a container is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerStatus {
    /// The OCI runtime makes it. No event follows: ask again, or delete it.
    Creating,
    /// Waits for its start.
    Created { pid: i32 },
    /// Runs.
    Running { pid: i32, started_at_ns: i64 },
    /// Ended, and the exit was reported. The record has no identity here: the one on disk and the one in the event
    /// have it. `saved` is false where the record could not be written to disk.
    Exited { record: ExitRecord, saved: bool },
}

/// An exec as its monitor sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecState {
    /// Its id.
    pub exec_id: String,
    /// The container.
    pub container_id: String,
    /// Process id, once the OCI runtime has started it.
    pub pid: Option<i32>,
}

/// How an exec ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecEnd {
    /// Its id.
    pub exec_id: String,
    /// 128 + signal when killed.
    pub exit_code: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_daemon_understands_newer_failures() {
        let failure: Failure = serde_json::from_str(r#"{"kind":"solar_flare","message":"m"}"#).unwrap();
        assert_eq!(failure, Failure::new(FailureKind::Internal, "m"));
        let kinds = [FailureKind::NotFound, FailureKind::RuntimeMissing, FailureKind::Internal];
        for kind in kinds {
            let text = serde_json::to_string(&kind).unwrap();
            assert_eq!(serde_json::from_str::<FailureKind>(&text).unwrap(), kind);
        }
    }

    #[test]
    fn what_a_daemon_leaves_out_has_a_default() {
        let spec = serde_json::json!({
            "id": ContainerId::generate(), "bundle": "/b", "exit_file": "/e", "from_the_future": 1,
            "runtime": {"path": "/r", "root": "/o"},
        });
        let spec: CreateContainer = serde_json::from_value(spec).unwrap();
        assert_eq!((spec.log_line_limit, spec.log_path, spec.kill_cgroup), (16384, None, false));
    }

    #[test]
    fn an_id_that_is_a_path_is_no_id() {
        let spec = serde_json::json!({
            "id": "../../etc", "bundle": "/b", "exit_file": "/e", "runtime": {"path": "/r", "root": "/o"},
        });
        assert!(serde_json::from_value::<CreateContainer>(spec).is_err());
    }
}

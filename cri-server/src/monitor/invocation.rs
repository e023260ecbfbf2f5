//! One run of the OCI runtime as a child process: its command line, its files, and what is left when it ends.
//! Waiting is not done here: the pod reaps.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal};

use super::connection::ReplyTo;
use super::protocol::{Failure, FailureKind, Runtime};
use super::{runtime_log, sys};
use crate::enter;
use crate::host::program::ProgramCopy;

/// Number of an invocation, unique in the monitor's life.
pub type InvocationId = u64;

/// Bytes of the runtime's log and standard error that are looked at.
const MAX_TEXT: u64 = 64 << 10;
/// Longest path of a unix socket that the kernel takes.
const MAX_SOCKET_PATH: usize = 107;

/// What the OCI runtime was run for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// `create` of this container.
    Create(String),
    /// `start` of this container.
    Start(String),
    /// `delete --force` of this container.
    Delete(String),
    /// `exec --detach` with this exec id.
    Exec(String),
}

/// How the OCI runtime is run, the same for the whole pod's life.
#[derive(Debug)]
pub struct Launcher {
    directory: PathBuf,
    directory_fd: OwnedFd,
    next: InvocationId,
    /// What oom_score_adj was before the monitor lowered its own.
    oom_score: Option<String>,
    own_program: OnceCell<OwnedFd>,
}

/// The standard descriptors of the OCI runtime; `create` and `exec` hand them to the container.
#[derive(Debug)]
pub struct StandardFds {
    /// Standard input, output and error; `/dev/null` for `None`.
    pub fds: [Option<OwnedFd>; 3],
}

impl StandardFds {
    /// Makes `owner` the owner of those that are pipes.
    pub fn give_to(&self, owner: Option<u32>) -> io::Result<()> {
        let Some(owner) = owner else { return Ok(()) };
        for fd in self.fds.iter().flatten() {
            let mode = rustix::fs::fstat(fd)?.st_mode;
            if rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Fifo {
                let (user, group) = (rustix::fs::Uid::from_raw(owner), rustix::fs::Gid::from_raw(owner));
                rustix::fs::fchown(fd, Some(user), Some(group))?;
            }
        }
        Ok(())
    }
}

/// A run of the OCI runtime.
#[derive(Debug)]
pub struct Invocation {
    /// Why it runs.
    pub purpose: Purpose,
    /// Who waits for it.
    pub reply: Option<ReplyTo>,
    /// Its process id.
    pub pid: i32,
    /// Whether it was killed on request.
    pub aborted: bool,
    files: Files,
    stderr: Option<std::fs::File>,
    console: Option<UnixListener>,
}

#[derive(Debug)]
struct Files {
    pid: PathBuf,
    log: PathBuf,
    console: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in [&self.pid, &self.log, &self.console] {
            let _never_made = std::fs::remove_file(path);
        }
    }
}

/// The program of a run.
#[derive(Debug, Clone, Copy)]
pub enum Program<'a> {
    /// The OCI runtime, from its copy in memory; from its file where there is none, or where that is not its original
    /// any more.
    Runtime(&'a Runtime, Option<&'a ProgramCopy>),
    /// This program's own `enter`, which has the OCI runtime's place; a descriptor of the container's main process is
    /// left open for it.
    Enter(BorrowedFd<'a>),
}

/// What to run.
#[derive(Debug)]
pub struct Request<'a> {
    /// The program.
    pub program: Program<'a>,
    /// Why.
    pub purpose: Purpose,
    /// Verb and options, without what this module adds.
    pub arguments: Vec<OsString>,
    /// The container, last on the command line.
    pub container: &'a str,
    /// Who waits.
    pub reply: Option<ReplyTo>,
    /// Its standard descriptors.
    pub stdio: StandardFds,
    /// Whether the runtime shall send the master of a terminal.
    pub terminal: bool,
}

impl Launcher {
    /// Uses `directory` for the files of invocations; whatever an earlier life left in it is removed.
    pub fn new(directory: PathBuf, oom_score: Option<String>) -> io::Result<Self> {
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir(&directory)?,
        }
        let directory_fd = crate::host::fs::open_root(&directory)?;
        Ok(Self { directory, directory_fd, next: 0, oom_score, own_program: OnceCell::new() })
    }

    /// Starts the OCI runtime.
    pub fn launch(&mut self, request: Request<'_>) -> Result<(InvocationId, Invocation), Failure> {
        let id = self.next;
        self.next += 1;
        let at = |kind: &str| self.directory.join(format!("{id}.{kind}"));
        let files = Files { pid: at("pid"), log: at("log"), console: at("tty") };
        let (mut command, _open_until_it_runs) = self.command(&request, &files)?;
        let console = match request.terminal {
            true => {
                let path = self.short(&files.console);
                let listen = || {
                    let listener = UnixListener::bind(&path)?;
                    listener.set_nonblocking(true)?;
                    Ok::<_, io::Error>(listener)
                };
                let listener = listen().map_err(|error| Failure::io("making a console socket", error))?;
                command.arg("--console-socket").arg(path);
                Some(listener)
            }
            false => None,
        };
        command.arg(request.container);
        let [stdin, stdout, mut stderr] = request.stdio.fds;
        let capture = match stderr {
            Some(_) => None,
            None => Some(bounded_file().map_err(|error| Failure::io("making a memory file", error))?),
        };
        if let Some(capture) = &capture {
            stderr = Some(
                capture.as_fd().try_clone_to_owned().map_err(|error| Failure::io("copying an fd", error))?,
            );
        }
        command.stdin(stdio(stdin)).stdout(stdio(stdout)).stderr(stdio(stderr));
        let child = command.spawn().map_err(|error| cannot_run(request.program, error))?;
        let (purpose, reply, pid) = (request.purpose, request.reply, child.id() as i32);
        Ok((id, Invocation { purpose, reply, pid, aborted: false, files, stderr: capture, console }))
    }

    fn command(&self, request: &Request<'_>, files: &Files) -> Result<(Command, Option<OwnedFd>), Failure> {
        let (mut command, open) = match request.program {
            Program::Runtime(runtime, copy) => {
                let file = runtime.path.as_path();
                let copy = copy.and_then(|program| program.of(file));
                let mut command = run(copy.as_deref().unwrap_or(file));
                command.arg0(file).args(&runtime.args).arg("--root").arg(&runtime.root);
                command.arg("--log").arg(&files.log).args(["--log-format", "json"]);
                (command, None)
            }
            Program::Enter(main) => {
                let prepare = || Ok::<_, io::Error>((self.own_program()?, rustix::io::dup(main)?));
                let (program, main) =
                    prepare().map_err(|error| Failure::io("preparing the monitor's own program", error))?;
                let mut command = run(&program);
                command.arg0("cri-monitor").arg(enter::VERB).arg("--log").arg(&files.log);
                command.arg("--pidfd").arg(main.as_raw_fd().to_string());
                (command, Some(main))
            }
        };
        command.args(&request.arguments);
        if matches!(request.purpose, Purpose::Create(_) | Purpose::Exec(_)) {
            command.arg("--pid-file").arg(&files.pid);
        }
        command.process_group(0).current_dir("/");
        sys::prepare(&mut command, self.oom_score.clone());
        Ok((command, open))
    }

    /// Opens what [`Program::Enter`] needs, once, so that no command has to.
    pub fn prepare_entries(&self) -> Result<(), Failure> {
        self.own_program().map(drop).map_err(|error| Failure::io("opening the monitor's own program", error))
    }

    /// The monitor's program where containers cannot write into it, though they may see processes that run from it.
    fn own_program(&self) -> io::Result<PathBuf> {
        let program = match self.own_program.get() {
            Some(program) => program,
            None => {
                let made = sys::read_only_program()?;
                self.own_program.get_or_init(|| made)
            }
        };
        Ok(PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd())))
    }

    /// The same file by a path that fits into a socket address, for this process and its children.
    fn short(&self, path: &Path) -> PathBuf {
        match path.file_name() {
            Some(name) if path.as_os_str().len() > MAX_SOCKET_PATH => {
                let process = rustix::process::getpid().as_raw_nonzero();
                let directory = self.directory_fd.as_raw_fd();
                Path::new("/proc").join(format!("{process}/fd/{directory}")).join(name)
            }
            _ => path.to_owned(),
        }
    }
}

impl Invocation {
    /// Kills the runtime and its helpers; its end is reaped like any other.
    pub fn abort(&mut self) {
        self.aborted = true;
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ended_already = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }

    /// The process that the runtime made.
    pub fn made_pid(&self) -> Option<i32> {
        let text = read_text(std::fs::File::open(&self.files.pid).ok()?);
        text.trim().parse().ok().filter(|pid| *pid > 1)
    }

    /// The master of the terminal, which the runtime has sent before it ended.
    pub fn take_console(&mut self) -> io::Result<OwnedFd> {
        let listener = self.console.take().ok_or(io::ErrorKind::NotFound)?;
        let (socket, _) = listener.accept()?;
        socket.set_nonblocking(true)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256];
        let mut slices = [io::IoSliceMut::new(&mut name)];
        rustix::net::recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        master.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Why it failed, in its own words where it has some. `output` is what came from it through a container's pipes.
    pub fn failure(&mut self, status: ExitStatus, output: &str) -> Failure {
        if self.aborted {
            return Failure::new(FailureKind::Aborted, "the OCI runtime was stopped by a delete or a kill");
        }
        let log = std::fs::File::open(&self.files.log).map(read_text).unwrap_or_default();
        let stderr = self.stderr.take().map(|mut file| {
            let _unread = file.seek(SeekFrom::Start(0));
            read_text(file)
        });
        let said = runtime_log::message(&log, stderr.as_deref().unwrap_or(output));
        let message = said.unwrap_or_else(|| format!("the OCI runtime {status} without a message"));
        Failure::new(FailureKind::Runtime, message)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself.
    Code(i32),
    /// Killed.
    Signal(i32),
}

impl ExitStatus {
    /// From what `wait` says; a process that only stopped has not ended.
    pub fn of(status: rustix::process::WaitStatus) -> Option<Self> {
        status.exit_status().map(Self::Code).or_else(|| status.terminating_signal().map(Self::Signal))
    }

    /// As shells count: 128 + signal when killed.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// The signal that killed it.
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Code(_) => None,
            Self::Signal(signal) => Some(signal),
        }
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "running the OCI runtime is the monitor's task")]
fn run(program: &Path) -> Command {
    Command::new(program)
}

fn cannot_run(program: Program<'_>, error: io::Error) -> Failure {
    let Program::Runtime(Runtime { path, .. }, _) = program else {
        return Failure::io("executing the monitor's own program", error);
    };
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => FailureKind::RuntimeMissing,
        _ => FailureKind::Internal,
    };
    Failure::new(kind, format!("executing the OCI runtime {}: {error}", path.display()))
}

fn stdio(fd: Option<OwnedFd>) -> Stdio {
    fd.map_or_else(Stdio::null, Stdio::from)
}

/// Memory that takes so many bytes and no more, so that nobody needs to read along.
fn bounded_file() -> io::Result<std::fs::File> {
    let fd = rustix::fs::memfd_create("runtime-stderr", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, MAX_TEXT)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::GROW)?;
    Ok(fd.into())
}

fn read_text(file: std::fs::File) -> String {
    let mut bytes = Vec::new();
    let _what_came_is_enough = file.take(MAX_TEXT).read_to_end(&mut bytes);
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1));
    String::from_utf8_lossy(&bytes).into_owned()
}

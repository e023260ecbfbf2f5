//! From a program just executed to a monitor that serves: detaches from the daemon, makes the sandbox, listens.
//!
//! The monitor is born with one connection as its standard input. Setup comes in by it and the result goes out by
//! it; when the daemon is gone by then, everything is undone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode};

use super::invocation::Launcher;
use super::namespaces::Sandbox;
use super::pod::{Beginnings, Pod, invocation_directory};
use super::protocol::{self, Failure, FailureKind, FromMonitor, PodSetup, ToMonitor, Welcome};
use super::wire::{FrameReader, Outgoing};
use super::{pod_init, sys};
use crate::enter;

/// Signals that are fetched instead of delivered: the ends of children, and what must not end a monitor.
pub const SIGNALS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
];

/// How long the daemon may take to send the setup.
const SETUP: Duration = Duration::from_secs(10);

const USAGE: &str = "\
cri-monitor: supervises the containers of one pod. Started by cri-server, with a connection as its standard input.

Usage: cri-monitor serve
       cri-monitor enter OPTION...   starts a command in a container; run by the monitor
       cri-monitor --version
       cri-monitor --help
";

/// The program.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name.as_encoded_bytes() == pod_init::NAME.to_bytes()) {
        pod_init::run();
    }
    match arguments.next().as_deref().and_then(|argument| argument.to_str()) {
        Some("serve") => match serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cri-monitor: {error}");
                ExitCode::FAILURE
            }
        },
        Some(enter::VERB) => enter::main(arguments),
        Some("--version") => {
            println!("cri-monitor {} (protocol {})", env!("CARGO_PKG_VERSION"), protocol::VERSION);
            ExitCode::SUCCESS
        }
        Some("--help") => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn serve() -> Result<(), Failure> {
    let (link, oom_score) = detach().map_err(|error| Failure::io("detaching from the daemon", error))?;
    let setup = receive_setup(&link)?;
    let begun = begin(&setup, &link, oom_score);
    let (pod_init, begun) = match begun {
        Ok(begun) => (begun.sandbox.init_pid(), begun),
        Err(failure) => {
            let _daemon_gone = send(&link, &FromMonitor::SetupFailed(failure.clone()));
            return Err(failure);
        }
    };
    let monitor_pid = rustix::process::getpid().as_raw_nonzero().get();
    let version = protocol::VERSION;
    let welcome = Welcome { version, pod_id: setup.pod_id.clone(), monitor_pid, pod_init };
    send(&link, &FromMonitor::Welcome(welcome)).map_err(|error| {
        let _gone_already = std::fs::remove_file(setup.dir.join(protocol::SOCKET));
        Failure::io("telling the daemon", error)
    })?;
    let Begun { sandbox, launcher, listener, _lock } = begun;
    let beginnings = Beginnings { id: setup.pod_id, init: sandbox.keep(), launcher, listener, link };
    let pod = Pod::new(beginnings).map_err(|error| Failure::io("starting the event loop", error))?;
    let ended = pod.run().map_err(|error| Failure::io("waiting for events", error));
    let _gone_already = std::fs::remove_file(setup.dir.join(protocol::SOCKET));
    ended
}

/// Own session, no descriptors of the daemon but the connection, no signals, orphans of the OCI runtime adopted.
fn detach() -> io::Result<(UnixStream, Option<String>)> {
    sys::close_from(3)?;
    let link = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    sys::block_signals(&SIGNALS)?;
    sys::stop_ignoring_signals();
    let _leader_already = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    std::env::set_current_dir("/")?;
    Ok((UnixStream::from(link), lower_oom_score()))
}

/// Makes the kernel spare the monitor when memory runs out, where it is allowed to ask; gives the old score, for
/// what it executes.
fn lower_oom_score() -> Option<String> {
    let file = "/proc/self/oom_score_adj";
    let old = std::fs::read_to_string(file).ok()?;
    std::fs::write(file, "-999").ok().map(|()| old.trim().to_owned())
}

fn receive_setup(link: &UnixStream) -> Result<PodSetup, Failure> {
    let failed = |error: io::Error| Failure::io("receiving the setup", error);
    link.set_read_timeout(Some(SETUP)).map_err(failed)?;
    let mut reader = FrameReader::default();
    let frame = loop {
        if let Some(frame) = reader.next_frame().map_err(failed)? {
            break frame;
        }
        if !reader.receive(link).map_err(failed)? {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
    };
    match serde_json::from_slice(&frame.body) {
        Ok(ToMonitor::Setup { setup, .. }) => Ok(setup),
        Ok(_) => Err(Failure::new(FailureKind::InvalidArgument, "the first frame is not a setup")),
        Err(error) => {
            Err(Failure::new(FailureKind::Unsupported, format!("the setup is not understood: {error}")))
        }
    }
}

struct Begun {
    sandbox: Sandbox,
    launcher: Launcher,
    listener: UnixListener,
    _lock: std::fs::File,
}

fn begin(setup: &PodSetup, link: &UnixStream, oom_score: Option<String>) -> Result<Begun, Failure> {
    let in_dir =
        |what: &str, error: io::Error| Failure::io(format!("{what} in {}", setup.dir.display()), error);
    let lock = take_lock(&setup.dir).map_err(|error| in_dir("taking the monitor's lock", error))?;
    // A later daemon finds this process by the lock; if it has looked already, nothing may be made.
    if hung_up(link).map_err(|error| Failure::io("looking for the daemon", error))? {
        return Err(Failure::new(FailureKind::FailedPrecondition, "the daemon is gone"));
    }
    log_to(&setup.dir).map_err(|error| in_dir("opening the monitor's own log", error))?;
    let launcher = Launcher::new(invocation_directory(&setup.dir), oom_score)
        .map_err(|error| in_dir("making a directory", error))?;
    let sandbox = Sandbox::make(setup)?;
    let listener = listen(&setup.dir).map_err(|error| in_dir("making the monitor's socket", error))?;
    Ok(Begun { sandbox, launcher, listener, _lock: lock })
}

fn hung_up(link: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(link, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&now)))? > 0)
}

/// Held as long as the monitor lives: tells a daemon that restarts whether there is one.
fn take_lock(dir: &Path) -> io::Result<std::fs::File> {
    let path = dir.join(protocol::LOCK);
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

fn log_to(dir: &Path) -> io::Result<()> {
    let path = dir.join("monitor.log");
    let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    Ok(rustix::stdio::dup2_stderr(file)?)
}

/// The directory is named by descriptor: a socket's path may be 107 bytes long, the directory's has no such limit.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    let directory: OwnedFd = crate::host::fs::open_root(dir)?;
    let path = protocol::socket_in(directory.as_fd());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(umask);
    listener
}

fn send(link: &UnixStream, message: &FromMonitor) -> io::Result<()> {
    Outgoing::new(message, Vec::new())?.send(link)
}

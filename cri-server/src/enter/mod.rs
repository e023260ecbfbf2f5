//! `cri-monitor enter`: starts a command in a running container, as an OCI runtime's `exec --detach` does, for handlers
//! whose own leaves something out. The monitor runs it like an OCI runtime: it names the process in a file, says why
//! it failed in a JSON log, and ends; the command becomes the monitor's child.
//!
//! ```text
//! this program: reads everything, opens what is on the node ─▶ setns (all namespaces at once) ─▶ fork
//!   ├─ stays: moves the child into the cgroups, lets it go on, waits for its exec or its error, names it
//!   └─ child: session, terminal, labels, directory, filter, credentials ─▶ exec
//! ```
//! From `setns` on, the container may look at these processes: they are not dumpable, run from a mount that is
//! read-only and nowhere attached, and close the node's files before they walk a path of it.

mod arguments;
mod credentials;
pub mod filter;
mod join;
mod program;
#[allow(unsafe_code)]
mod sys;
mod terminal;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};

use crate::monitor::sys::{Fork, exit_now, fork_into, stop_ignoring_signals};
use crate::spec::oci::{Namespace, NamespaceKind, Process, Seccomp};
use arguments::Arguments;
pub use arguments::masks_word;
use filter::Filter;
use join::Users;

/// The first argument that chooses this program.
pub const VERB: &str = "enter";

/// Longest message of the child, bytes.
const REPORT: usize = 4096;
/// How long a child that was killed is waited for.
const ENDING: Duration = Duration::from_millis(100);
/// What the child says last, if all is well.
const READY: &[u8] = b"\0ready";

/// The program; `arguments` are those after the verb.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::parse(arguments) {
        Ok(arguments) => arguments,
        Err(reason) => {
            eprintln!("cri-monitor {VERB}: {reason}");
            return ExitCode::from(2);
        }
    };
    // Before the node's files are out of reach.
    let log =
        arguments.log.as_ref().map(|path| File::options().append(true).create(true).mode(0o600).open(path));
    match enter(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            if let Some(Ok(mut log)) = log {
                let line = serde_json::json!({"level": "error", "msg": reason});
                let _the_exit_status_says_it_too = writeln!(log, "{line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What the child needs, opened on the node.
struct Command {
    process: Process,
    container: Container,
    /// The node's /proc.
    proc: OwnedFd,
    console: Option<UnixStream>,
    users: Users,
}

/// What the bundle says of the container.
struct Container {
    filter: Option<Filter>,
    namespaces: Vec<NamespaceKind>,
}

fn enter(arguments: &Arguments) -> Result<(), String> {
    join::refuse_frozen(&arguments.cgroups)?;
    let mut command = Command {
        process: read_json(&arguments.process)?,
        container: read_bundle(arguments)?,
        proc: open_directory("/proc")?,
        console: arguments.console.as_ref().map(connect).transpose()?,
        users: Users::OfNode,
    };
    let named = create(&arguments.pid_file)
        .map_err(|error| format!("making {}: {error}", arguments.pid_file.display()))?;
    let cgroups = join::open_cgroups(&arguments.cgroups, arguments.pid)?;
    leave_node(&command.process)?;
    command.users = join::namespaces(arguments, &command.container.namespaces)?;
    let pair =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (near, far) = pair.map_err(|error| format!("making a socket pair: {error}"))?;
    match fork_into(0).map_err(|error| format!("forking in the container's namespaces: {error}"))? {
        Fork::Child => {
            drop(near);
            let reason = match begin(&command, &far) {
                Err(reason) => reason,
                Ok(never) => match never {},
            };
            let text = &reason.as_bytes()[..reason.len().min(REPORT)];
            // Filters allow this more often than what is for sockets alone.
            let _parent_gone = rustix::io::write(&far, text);
            exit_now(1)
        }
        Fork::Parent(child) => {
            drop(far);
            let moved = join::move_into(&cgroups, child);
            sys::forget_affinity(child);
            let started = moved.and_then(|()| release(&near));
            started.and_then(|()| name(&named, child)).inspect_err(|_| end(child))
        }
    }
}

/// What children inherit and can no longer be had in the container.
fn leave_node(process: &Process) -> Result<(), String> {
    if let Some(score) = process.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| format!("setting oom_score_adj to {score}: {error}"))?;
    }
    if let Some(label) = process.selinux_label.as_ref().filter(|label| !label.is_empty()) {
        // The exec forgets it. Where it cannot be had, the keyring has the monitor's.
        let _unlabelled = std::fs::write("/proc/self/attr/keycreate", label);
    }
    sys::new_session_keyring().map_err(|error| format!("making a session keyring: {error}"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("becoming not dumpable: {error}"))
}

fn name(mut file: &File, child: i32) -> Result<(), String> {
    file.write_all(child.to_string().as_bytes()).map_err(|error| format!("naming the process: {error}"))
}

/// Lets the child go on, and waits until it has become the command.
fn release(child: &OwnedFd) -> Result<(), String> {
    // One that has ended says no more than that.
    let _ended = rustix::net::send(child, b"go", SendFlags::NOSIGNAL);
    let mut ready = false;
    loop {
        match receive(child).map_err(|error| format!("waiting for the exec: {error}"))?.as_slice() {
            [] if ready => return Ok(()),
            [] => return Err("the process was killed before it became the command".into()),
            READY => ready = true,
            report => return Err(String::from_utf8_lossy(report).into_owned()),
        }
    }
}

/// Where it does not end at once (it may be frozen), the monitor reaps it.
fn end(child: i32) {
    let Some(child) = Pid::from_raw(child) else { return };
    let _ended_already = rustix::process::kill_process(child, Signal::KILL);
    let deadline = Instant::now() + ENDING;
    while let Ok(None) = rustix::process::waitpid(Some(child), WaitOptions::NOHANG) {
        if Instant::now() >= deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The child, from the fork to the exec.
fn begin(command: &Command, parent: &OwnedFd) -> Result<Infallible, String> {
    tie()?;
    if receive(parent).map_err(|error| format!("waiting for the cgroups: {error}"))?.is_empty() {
        return Err("its maker is gone".into());
    }
    let process = &command.process;
    if command.users == Users::OfPod {
        credentials::become_root()?;
        tie()?;
    }
    rustix::process::setsid().map_err(|error| format!("making a session: {error}"))?;
    if process.terminal {
        let console = command.console.as_ref().ok_or("a terminal needs --console-socket")?;
        terminal::make(process, &command.proc, console)?;
    }
    label(process, &command.proc)?;
    credentials::give_pipes(process);
    // Nothing of the node is open any more when paths of the container are walked.
    sys::close_all_but(parent).map_err(|error| format!("closing descriptors: {error}"))?;
    // Root may go where the user may not, and on some file systems the user where root may not.
    let went = change_directory(&process.cwd);
    if let Some(mask) = process.user.umask {
        rustix::process::umask(Mode::from_raw_mode(mask));
    }
    stop_ignoring_signals();
    let filter = command.container.filter.as_ref();
    if !process.no_new_privileges {
        // The filter comes first where loading it takes a capability that is given up. What is called from then on, it
        // must allow.
        tell(parent)?;
        credentials::load(filter)?;
    }
    credentials::take(process)?;
    tie()?;
    went.or_else(|_| change_directory(&process.cwd))?;
    if process.no_new_privileges {
        tell(parent)?;
    }
    untie()?;
    if process.no_new_privileges {
        credentials::renounce()?;
        credentials::load(filter)?;
    }
    Err(program::execute(process))
}

/// The child goes with its parent, and nobody in the container may look into it. A change of user takes both back.
fn tie() -> Result<(), String> {
    let tie = || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
    };
    tie().map_err(|error| format!("tying the process to its maker: {error}"))
}

/// From here on the child outlives its parent.
fn untie() -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(None)
        .map_err(|error| format!("untying the process: {error}"))
}

/// Tells the parent, which must be there for that, that all is well. An error may follow; it then counts.
fn tell(parent: &OwnedFd) -> Result<(), String> {
    let told = rustix::io::write(parent, READY);
    told.map(drop).map_err(|error| format!("telling that the process is ready: {error}"))
}

fn change_directory(path: &str) -> Result<(), String> {
    rustix::process::chdir(path)
        .map_err(|error| format!("changing to the working directory {path:?}: {error}"))?;
    let here = rustix::process::getcwd(Vec::new());
    let here = here.map_err(|error| format!("reading the working directory: {error}"))?;
    if here.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(format!("the working directory {path:?} leads out of the container"))
}

/// Labels of mandatory access control take effect at the exec.
fn label(process: &Process, proc: &OwnedFd) -> Result<(), String> {
    let set = |files: &[&str], text: String| {
        let attempts = files.iter().map(|file| {
            let file = rustix::fs::openat(proc, *file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&file, text.as_bytes()).map(drop)
        });
        let mut outcome = Err(rustix::io::Errno::NOENT);
        for attempt in attempts {
            outcome = attempt;
            if outcome != Err(rustix::io::Errno::NOENT) {
                break;
            }
        }
        outcome.map_err(|error| format!("setting the label {text:?}: {error}"))
    };
    if let Some(profile) = process.apparmor_profile.as_ref().filter(|profile| !profile.is_empty()) {
        set(&["self/attr/apparmor/exec", "self/attr/exec"], format!("exec {profile}"))?;
    }
    if let Some(label) = process.selinux_label.as_ref().filter(|label| !label.is_empty()) {
        set(&["self/attr/exec"], label.clone())?;
    }
    Ok(())
}

fn read_bundle(arguments: &Arguments) -> Result<Container, String> {
    #[derive(serde::Deserialize)]
    struct Bundle {
        linux: Linux,
    }
    #[derive(serde::Deserialize)]
    struct Linux {
        seccomp: Option<Seccomp>,
        namespaces: Vec<Namespace>,
    }
    let bundle: Bundle = read_json(&arguments.bundle.join("config.json"))?;
    let compile = |profile| filter::compile(&profile, crate::spec::Machine::HERE, arguments.masks);
    let filter = bundle.linux.seccomp.map(compile).transpose().map_err(|error| error.to_string())?;
    Ok(Container { filter, namespaces: bundle.linux.namespaces.iter().map(|one| one.kind).collect() })
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    let said = |error: &dyn std::fmt::Display| format!("reading {}: {error}", path.display());
    let bytes = std::fs::read(path).map_err(|error| said(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| said(&error))
}

fn open_directory(path: &str) -> Result<OwnedFd, String> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("opening {path}: {error}"))
}

fn connect(path: &PathBuf) -> Result<UnixStream, String> {
    UnixStream::connect(path).map_err(|error| format!("connecting to {}: {error}", path.display()))
}

/// One message; empty where the other end is closed.
fn receive(socket: impl AsFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; REPORT];
    let (length, _) =
        rustix::io::retry_on_intr(|| rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()))?;
    buffer.truncate(length);
    Ok(buffer)
}

//! Create and start: each a run of the OCI runtime, and what follows from its end.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitOptions};

use super::calls::{Outcome, send_signal};
use super::{Child, Pod, Source};
use crate::host::program::ProgramCopy;
use crate::monitor::cgroup;
use crate::monitor::clock::now_ns;
use crate::monitor::connection::ReplyTo;
use crate::monitor::container::{Container, Phase, Process, Start};
use crate::monitor::invocation::{ExitStatus, Invocation, Program, Purpose, Request, StandardFds};
use crate::monitor::log::{LineSplitter, LogFile, Newlines, StreamName};
use crate::monitor::output::{Output, Scratch};
use crate::monitor::protocol::{Answer, CreateContainer, Event, Failure, FailureKind, Runtime};

/// Containers of one pod, exited ones included.
const MAX_CONTAINERS: usize = 1024;
/// Reads that empty a pipe.
const PIPE_READS: usize = (64 << 10) / size_of::<Scratch>() + 1;
/// Bytes of a container's identity as JSON.
const MAX_IDENTITY: usize = 64 << 10;

/// What became of a process that the OCI runtime made.
pub(super) enum Claim {
    /// It is a child of this process.
    Alive(OwnedFd),
    /// It was, and has ended.
    Ended(ExitStatus),
}

impl Pod {
    pub(super) fn create(&mut self, reply: ReplyTo, spec: CreateContainer, fds: Vec<OwnedFd>) -> Outcome {
        self.check_create(&spec)?;
        if spec.entry.is_some() {
            self.launcher.prepare_entries()?;
        }
        self.kills.begin(spec.cgroup.pod_oom_counter.as_deref());
        let log = LogFile::open(spec.log_path.clone()).map_err(|error| {
            let path = spec.log_path.as_deref().unwrap_or(std::path::Path::new(""));
            Failure::io(format!("opening the log file {}", path.display()), error)
        })?;
        let (stdio, stdin, outputs) =
            standard_fds(&spec).map_err(|error| Failure::io("making the container's pipes", error))?;
        stdio
            .give_to(spec.stdio_owner)
            .map_err(|error| Failure::io("giving the container its pipes", error))?;
        let copy = spec.copy_of.clone().zip(fds.into_iter().next());
        let program = copy.map(|(original, fd)| Rc::new(ProgramCopy::received(fd, original)));
        let arguments = vec![OsString::from("create"), "--bundle".into(), spec.bundle.clone().into()];
        let id = spec.id.to_string();
        let (number, invocation) = self.launcher.launch(Request {
            program: Program::Runtime(&spec.runtime, program.as_deref()),
            purpose: Purpose::Create(id.clone()),
            arguments,
            container: &id,
            reply: Some(reply),
            stdio,
            terminal: spec.terminal,
        })?;
        self.children.insert(invocation.pid, Child::Invocation(number));
        self.invocations.insert(number, invocation);
        let container = Container {
            program,
            phase: Phase::Creating,
            invocation: Some(number),
            log,
            outputs: Vec::new(),
            stdin,
            terminal: None,
            attachments: Vec::new(),
            captured: Vec::new(),
            oom_baseline: 0,
            deletion: None,
            linger_until: None,
            spec,
        };
        self.containers.insert(id.clone(), container);
        outputs.into_iter().for_each(|output| self.watch(&id, output));
        Ok(None)
    }

    fn check_create(&self, spec: &CreateContainer) -> Result<(), Failure> {
        let refuse = |kind, message: String| Err(Failure::new(kind, message));
        if self.ending.is_some() {
            return refuse(FailureKind::FailedPrecondition, "the monitor is shutting down".into());
        }
        if self.containers.contains_key(spec.id.as_str()) {
            return refuse(FailureKind::AlreadyExists, format!("container {} exists", spec.id));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return refuse(
                FailureKind::FailedPrecondition,
                format!("the pod has {MAX_CONTAINERS} containers"),
            );
        }
        if spec.identity.to_string().len() > MAX_IDENTITY {
            return refuse(
                FailureKind::InvalidArgument,
                format!("the identity is longer than {MAX_IDENTITY} bytes"),
            );
        }
        Ok(())
    }

    fn watch(&mut self, id: &str, mut output: Output) {
        output.token = self.poll.add(output.as_fd(), Source::Output(id.to_owned())).ok();
        if let Some(container) = self.containers.get_mut(id) {
            container.outputs.push(output);
        }
    }

    pub(super) fn create_finished(&mut self, id: &str, mut invocation: Invocation, status: ExitStatus) {
        let outcome = self.made(id, &mut invocation, status);
        let Some(container) = self.containers.get_mut(id) else { return };
        container.invocation = None;
        match outcome {
            Ok((pid, claim)) => {
                let counter = container.spec.cgroup.oom_counter.as_deref();
                container.oom_baseline = cgroup::read_oom_kills(counter).unwrap_or(0);
                container.captured = Vec::new();
                self.reply(invocation.reply, Ok(Answer::Created { pid }));
                self.adopt_main(id, pid, claim);
                if self.containers.get(id).is_some_and(|container| container.deletion.is_some()) {
                    self.run_deletion(id);
                }
            }
            Err(failure) => {
                // What was killed in its making is nobody else's.
                let _its_own = self.settle_oom_kills(id);
                // A half-made process would outlive the record of it.
                if let Some(pid) = invocation.made_pid() {
                    self.kill_child(pid);
                }
                let Some(container) = self.containers.get_mut(id) else { return };
                let deletion = container.deletion.get_or_insert_default();
                deletion.failed_create = Some((invocation.reply, failure));
                self.run_deletion(id);
            }
        }
    }

    fn made(
        &mut self,
        id: &str,
        invocation: &mut Invocation,
        status: ExitStatus,
    ) -> Result<(i32, Claim), Failure> {
        let terminal = self.container(id)?.spec.terminal;
        self.swallow_runtime_output(id);
        let container = self.container(id)?;
        if status != ExitStatus::Code(0) || invocation.aborted {
            let said = String::from_utf8_lossy(&container.captured).into_owned();
            return Err(invocation.failure(status, &said));
        }
        if terminal {
            let master = invocation.take_console();
            let master = master.map_err(|error| Failure::io("taking the container's terminal", error))?;
            self.attach_terminal(id, master)
                .map_err(|error| Failure::io("using the container's terminal", error))?;
        }
        let pid = invocation.made_pid().ok_or_else(|| {
            Failure::new(FailureKind::Runtime, "the OCI runtime succeeded without naming the process")
        })?;
        Ok((pid, self.claim(pid)?))
    }

    /// What is in the pipes before the start was written by the OCI runtime.
    fn swallow_runtime_output(&mut self, id: &str) {
        let tokens =
            |container: &Container| container.outputs.iter().filter_map(|o| o.token).collect::<Vec<_>>();
        for token in self.containers.get(id).map(tokens).unwrap_or_default() {
            // A pipe holds no more than this, and what is not there does no harm to ask for.
            (0..PIPE_READS).for_each(|_| self.output_ready(token, id));
        }
    }

    fn attach_terminal(&mut self, id: &str, master: OwnedFd) -> io::Result<()> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        let copy = || rustix::io::fcntl_dupfd_cloexec(&master, 3);
        container.stdin = container.spec.stdin.then(copy).transpose()?;
        container.terminal = Some(copy()?);
        let limit = container.spec.log_line_limit;
        let output = Output::new(master, LineSplitter::new(StreamName::Stdout, Newlines::Terminal, limit))?;
        self.watch(id, output);
        Ok(())
    }

    fn adopt_main(&mut self, id: &str, pid: i32, claim: Claim) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let created_at_ns = now_ns();
        match claim {
            Claim::Alive(pidfd) => {
                container.phase = Phase::Alive(Process { pid, pidfd, created_at_ns, start: Start::Pending });
                self.children.insert(pid, Child::Main(id.to_owned()));
            }
            Claim::Ended(status) => self.record_exit(id, (pid, created_at_ns, None), status),
        }
    }

    /// Finds out about the process that the OCI runtime named: alive, or reaped already.
    pub(super) fn claim(&mut self, pid: i32) -> Result<Claim, Failure> {
        let stranger =
            || Failure::new(FailureKind::Runtime, format!("process {pid} is not the OCI runtime's child"));
        let raw = Pid::from_raw(pid).ok_or_else(stranger)?;
        match rustix::process::waitpid(Some(raw), WaitOptions::NOHANG) {
            Ok(None) => rustix::process::pidfd_open(raw, PidfdFlags::empty())
                .map(Claim::Alive)
                .map_err(|error| Failure::io(format!("opening process {pid}"), error)),
            Ok(Some((_, status))) => ExitStatus::of(status).map(Claim::Ended).ok_or_else(stranger),
            Err(_) => self.unclaimed.remove(&pid).map(Claim::Ended).ok_or_else(stranger),
        }
    }

    /// Kills a process if it is a child of this one and not reaped, so that the number is still its own.
    pub(super) fn kill_child(&mut self, pid: i32) {
        if let Ok(Claim::Alive(pidfd)) = self.claim(pid) {
            let _ended_already = send_signal(&pidfd, libc::SIGKILL);
        }
    }

    pub(super) fn start(&mut self, reply: ReplyTo, id: &str) -> Outcome {
        let container = self.container(id)?;
        let busy = container.invocation.is_some() || container.deletion.is_some();
        let Phase::Alive(process @ Process { start: Start::Pending, .. }) = &mut container.phase else {
            return Err(Failure::new(
                FailureKind::FailedPrecondition,
                format!("container {id} is not created"),
            ));
        };
        if busy {
            return Err(Failure::new(FailureKind::FailedPrecondition, format!("container {id} is busy")));
        }
        process.start = Start::Asked(now_ns());
        let runtime = container.spec.runtime.clone();
        let started = self.invoke(&runtime, Purpose::Start(id.to_owned()), (id, &["start"]), Some(reply));
        if started.is_err() {
            self.set_start(id, Start::Pending);
        }
        started.map(|()| None)
    }

    pub(super) fn start_finished(&mut self, id: &str, mut invocation: Invocation, status: ExitStatus) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.invocation = None;
        let started_at = match &container.phase {
            Phase::Alive(process) => process.start.at(),
            Phase::Ending { record, .. } | Phase::Ended { record, .. } => record.started_at_ns,
            Phase::Creating => None,
        };
        let deleting = container.deletion.is_some();
        let outcome = match started_at {
            Some(started_at_ns) if status == ExitStatus::Code(0) && !invocation.aborted => Ok(started_at_ns),
            _ => Err(invocation.failure(status, "")),
        };
        self.set_start(id, outcome.as_ref().map_or(Start::Pending, |at| Start::Done(*at)));
        let heard = invocation.reply.is_some_and(|reply| self.connections.contains_key(&reply.connection));
        if let (Ok(started_at_ns), false) = (&outcome, heard) {
            // The daemon that asked is dead; the one that serves now knows the container as created.
            self.announce(Event::ContainerStarted { id: id.to_owned(), started_at_ns: *started_at_ns });
        }
        self.reply(invocation.reply, outcome.map(|started_at_ns| Answer::Started { started_at_ns }));
        if deleting {
            self.run_deletion(id);
        }
    }

    fn set_start(&mut self, id: &str, start: Start) {
        if let Some(Container { phase: Phase::Alive(process), .. }) = self.containers.get_mut(id) {
            process.start = start;
        }
    }

    pub(super) fn invoke(
        &mut self,
        runtime: &Runtime,
        purpose: Purpose,
        (id, verb): (&str, &[&str]),
        reply: Option<ReplyTo>,
    ) -> Result<(), Failure> {
        let program = self.containers.get(id).and_then(|container| container.program.clone());
        let (number, invocation) = self.launcher.launch(Request {
            program: Program::Runtime(runtime, program.as_deref()),
            purpose,
            arguments: verb.iter().map(OsString::from).collect(),
            container: id,
            reply,
            stdio: StandardFds { fds: [None, None, None] },
            terminal: false,
        })?;
        self.children.insert(invocation.pid, Child::Invocation(number));
        self.invocations.insert(number, invocation);
        if let Some(container) = self.containers.get_mut(id) {
            container.invocation = Some(number);
        }
        Ok(())
    }
}

/// Output that may wait in a pipe, bytes: the most that an ordinary kernel allows. Pages are taken only when used.
const OUTPUT_BUFFER: usize = 1 << 20;

/// The container's standard descriptors, the writing end of its input, and what is read from it.
fn standard_fds(spec: &CreateContainer) -> io::Result<(StandardFds, Option<OwnedFd>, Vec<Output>)> {
    if spec.terminal {
        return Ok((StandardFds { fds: [None, None, None] }, None, Vec::new()));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (stdin, kept) = match spec.stdin {
        true => pipe().map(|(reading, writing)| (Some(reading), Some(writing)))?,
        false => (None, None),
    };
    let output = || {
        let ends = pipe()?;
        // A container must not wait because this process, or the log's disk, is held up for a moment. A kernel that
        // allows less leaves the pipe as it is.
        let _capacity = rustix::pipe::fcntl_setpipe_size(&ends.0, OUTPUT_BUFFER);
        io::Result::Ok(ends)
    };
    let (stdout, stdout_end) = output()?;
    let (stderr, stderr_end) = output()?;
    let splitter = |stream| LineSplitter::new(stream, Newlines::Verbatim, spec.log_line_limit);
    let outputs = vec![
        Output::new(stdout, splitter(StreamName::Stdout))?,
        Output::new(stderr, splitter(StreamName::Stderr))?,
    ];
    Ok((StandardFds { fds: [stdin, Some(stdout_end), Some(stderr_end)] }, kept, outputs))
}

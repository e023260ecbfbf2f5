//! Processes started in running containers. The OCI runtime's refusal is a failed call; the process's own exit code
//! is an event. The two cannot be taken for each other.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::calls::{Outcome, send_signal};
use super::lifecycle::Claim;
use super::{Child, Pod};
use crate::enter;
use crate::monitor::cgroup;
use crate::monitor::connection::ReplyTo;
use crate::monitor::container::{Phase, Process};
use crate::monitor::invocation::{
    ExitStatus, Invocation, InvocationId, Program, Purpose, Request, StandardFds,
};
use crate::monitor::protocol::{
    Answer, CreateContainer, Entry, Event, ExecEnd, ExecProcess, ExecState, Failure, FailureKind,
};

/// Execs of one pod that run at once.
const MAX_EXECS: usize = 1024;
/// Ends of execs that are remembered for a daemon that was not connected.
const MAX_ENDED: usize = 128;

/// An exec that has not ended.
#[derive(Debug)]
pub(super) struct ExecSession {
    container: String,
    phase: ExecPhase,
}

#[derive(Debug)]
enum ExecPhase {
    Starting(InvocationId),
    Running { pid: i32, pidfd: OwnedFd },
}

impl ExecSession {
    pub(super) fn state(&self, id: &str) -> ExecState {
        let pid = match &self.phase {
            ExecPhase::Starting(_) => None,
            ExecPhase::Running { pid, .. } => Some(*pid),
        };
        ExecState { exec_id: id.to_owned(), container_id: self.container.clone(), pid }
    }
}

/// What `cri-monitor enter` has to know of the container.
fn entry_arguments(container: &CreateContainer, entry: &Entry, main: &Process) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("--bundle"), container.bundle.clone().into()];
    arguments.extend(["--pid".into(), main.pid.to_string().into()]);
    arguments.extend(["--masks".into(), enter::masks_word(entry.masks).into()]);
    let cgroups = entry.cgroups.iter();
    arguments.extend(cgroups.flat_map(|directory| ["--cgroup".into(), directory.clone().into()]));
    arguments
}

impl Pod {
    pub(super) fn exec(&mut self, reply: ReplyTo, exec: ExecProcess, fds: Vec<OwnedFd>) -> Outcome {
        let refuse = |kind, message: String| Err(Failure::new(kind, message));
        if self.execs.contains_key(&exec.exec_id) {
            return refuse(FailureKind::AlreadyExists, format!("exec {} exists", exec.exec_id));
        }
        if self.execs.len() >= MAX_EXECS {
            return refuse(
                FailureKind::FailedPrecondition,
                format!("{MAX_EXECS} execs run in the pod already"),
            );
        }
        let stdio = match (exec.terminal, <[OwnedFd; 3]>::try_from(fds)) {
            (true, _) => StandardFds { fds: [None, None, None] },
            (false, Ok(fds)) => StandardFds { fds: fds.map(Some) },
            (false, Err(_)) => {
                return refuse(FailureKind::InvalidArgument, "an exec needs three descriptors".into());
            }
        };
        self.container(&exec.container_id)?;
        let container = &self.containers[&exec.container_id];
        let main = match &container.phase {
            Phase::Alive(process) if process.start.at().is_some() && container.deletion.is_none() => process,
            _ => {
                let message = format!("container {} is not running", exec.container_id);
                return refuse(FailureKind::FailedPrecondition, message);
            }
        };
        let owner = container.spec.stdio_owner;
        stdio.give_to(owner).map_err(|error| Failure::io("giving the exec its pipes", error))?;
        let (program, mut arguments) = match &container.spec.entry {
            None => {
                let runtime = Program::Runtime(&container.spec.runtime, container.program.as_deref());
                (runtime, vec![OsString::from("exec"), "--detach".into()])
            }
            Some(entry) => {
                (Program::Enter(main.pidfd.as_fd()), entry_arguments(&container.spec, entry, main))
            }
        };
        arguments.extend(["--process".into(), exec.process.into()]);
        let (number, invocation) = self.launcher.launch(Request {
            program,
            purpose: Purpose::Exec(exec.exec_id.clone()),
            arguments,
            container: &exec.container_id,
            reply: Some(reply),
            stdio,
            terminal: exec.terminal,
        })?;
        self.children.insert(invocation.pid, Child::Invocation(number));
        self.invocations.insert(number, invocation);
        let session = ExecSession { container: exec.container_id, phase: ExecPhase::Starting(number) };
        self.execs.insert(exec.exec_id, session);
        Ok(None)
    }

    pub(super) fn exec_finished(&mut self, id: &str, mut invocation: Invocation, status: ExitStatus) {
        let claimed = match status {
            ExitStatus::Code(0) if !invocation.aborted => self.claim_exec(&invocation),
            _ => Err(invocation.failure(status, "")),
        };
        let console = invocation.take_console().ok();
        let (made, aborted) = (invocation.made_pid(), invocation.aborted);
        let reply = invocation.reply;
        match claimed {
            Ok((pid, Claim::Alive(pidfd))) => {
                if let Some(session) = self.execs.get_mut(id) {
                    session.phase = ExecPhase::Running { pid, pidfd };
                }
                self.children.insert(pid, Child::Exec(id.to_owned()));
                self.reply_with(reply, Ok(Answer::Execed { pid }), console.into_iter().collect());
            }
            Ok((pid, Claim::Ended(status))) => {
                self.reply_with(reply, Ok(Answer::Execed { pid }), console.into_iter().collect());
                self.exec_exited(id, status);
            }
            Err(failure) => {
                if let Some(pid) = made
                    && let Ok(Claim::Alive(_)) = self.claim(pid)
                {
                    let container = self.execs.get(id).map_or("", |session| session.container.as_str());
                    cgroup::kill_session(pid, self.cgroups_of(container));
                }
                self.reply(reply, Err(failure));
                if aborted {
                    // Who killed it may no longer wait for its start.
                    self.exec_exited(id, ExitStatus::Signal(libc::SIGKILL));
                } else {
                    self.execs.remove(id);
                }
            }
        }
    }

    fn claim_exec(&mut self, invocation: &Invocation) -> Result<(i32, Claim), Failure> {
        let unnamed =
            || Failure::new(FailureKind::Runtime, "a command was started, and its process not named");
        let pid = invocation.made_pid().ok_or_else(unnamed)?;
        Ok((pid, self.claim(pid)?))
    }

    pub(super) fn exec_exited(&mut self, id: &str, status: ExitStatus) {
        self.execs.remove(id);
        let end = ExecEnd { exec_id: id.to_owned(), exit_code: status.code() };
        if self.ended_execs.len() >= MAX_ENDED {
            self.ended_execs.pop_front();
        }
        self.ended_execs.push_back(end.clone());
        self.announce(Event::ExecExited { exec_id: end.exec_id, exit_code: end.exit_code });
    }

    pub(super) fn signal_exec(&mut self, id: &str, signal: i32) -> Result<(), Failure> {
        let Some(session) = self.execs.get(id) else { return Ok(()) };
        match &session.phase {
            ExecPhase::Running { pid, .. } if signal == libc::SIGKILL => {
                cgroup::kill_session(*pid, self.cgroups_of(&session.container));
                Ok(())
            }
            ExecPhase::Running { pidfd, .. } => send_signal(pidfd, signal),
            ExecPhase::Starting(number) if signal == libc::SIGKILL => {
                let (number, container) = (*number, session.container.clone());
                self.abort_exec(number, &container);
                Ok(())
            }
            ExecPhase::Starting(_) => {
                Err(Failure::new(FailureKind::FailedPrecondition, format!("exec {id} is being started")))
            }
        }
    }

    /// Ends the attempts to start something in a container that is going.
    pub(super) fn abort_execs(&mut self, container: &str) {
        let starting = |session: &ExecSession| match session.phase {
            ExecPhase::Starting(number) if session.container == container => Some(number),
            _ => None,
        };
        for number in self.execs.values().filter_map(starting).collect::<Vec<_>>() {
            self.abort_exec(number, container);
        }
    }

    fn abort_exec(&mut self, number: InvocationId, container: &str) {
        let Some(invocation) = self.invocations.get(&number).filter(|run| !run.aborted) else { return };
        let known = |pid| self.children.contains_key(&pid);
        // `enter` hands nothing over before it has named it.
        let entered = self.containers.get(container).is_some_and(|container| container.spec.entry.is_some());
        let is_named = || entered || invocation.made_pid().is_some();
        cgroup::kill_run(invocation.pid, self.cgroups_of(container), known, is_named);
        if let Some(invocation) = self.invocations.get_mut(&number) {
            invocation.aborted = true;
        }
    }

    fn cgroups_of(&self, container: &str) -> &[PathBuf] {
        let container = self.containers.get(container);
        container.map_or(&[], |container| container.spec.cgroup.directories.as_slice())
    }
}

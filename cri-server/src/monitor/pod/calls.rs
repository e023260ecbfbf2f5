//! Frames of daemons: greeting, calls, answers, events.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::{Ending, Pod};
use crate::monitor::connection::{Greeting, ReplyTo};
use crate::monitor::container::Phase;
use crate::monitor::poll::Token;
use crate::monitor::protocol::{
    self, Answer, Call, Event, Failure, FailureKind, FromMonitor, MonitorState, Target, ToMonitor, Welcome,
};
use crate::monitor::sys;
use crate::monitor::wire::{Frame, Outgoing};

/// How long a shutdown waits for containers to go.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// The last real-time signal.
const LAST_SIGNAL: i32 = 64;

/// The answer of a call, `None` when it comes later.
pub type Outcome = Result<Option<Answer>, Failure>;

impl Pod {
    pub(super) fn serve(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let flushed = connection.flush();
        let (frames, received) = connection.receive();
        for frame in frames {
            self.frame(token, frame);
        }
        match flushed.and(received) {
            Ok(()) => self.update_interest(token),
            Err(_) => self.disconnect(token),
        }
    }

    fn frame(&mut self, token: Token, frame: Frame) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match serde_json::from_slice(&frame.body) {
            Ok(ToMonitor::Hello { .. }) => {
                connection.greeting = Greeting::Received;
                let welcome = self.welcome();
                self.send(token, &FromMonitor::Welcome(welcome), Vec::new());
            }
            Ok(ToMonitor::Call { number, call }) if connection.greeting == Greeting::Received => {
                let reply = ReplyTo { connection: token, number };
                match self.call(reply, call, frame.fds) {
                    Ok(None) => {}
                    Ok(Some(answer)) => self.reply(Some(reply), Ok(answer)),
                    Err(failure) => self.reply(Some(reply), Err(failure)),
                }
            }
            Ok(_) => self.disconnect(token),
            Err(error) => match call_number(&frame.body) {
                Some(number) if connection.greeting == Greeting::Received => {
                    let failure = Failure::new(FailureKind::Unsupported, format!("not understood: {error}"));
                    self.reply(Some(ReplyTo { connection: token, number }), Err(failure));
                }
                _ => self.disconnect(token),
            },
        }
    }

    fn call(&mut self, reply: ReplyTo, call: Call, fds: Vec<OwnedFd>) -> Outcome {
        match call {
            Call::Create(spec) => self.create(reply, *spec, fds),
            Call::Start { id } => self.start(reply, &id),
            Call::Exec(exec) => self.exec(reply, exec, fds),
            Call::Attach(attach) => self.attach(reply, attach, fds),
            Call::Signal { target, signal } => self.signal(&target, signal).map(|()| Some(Answer::Done)),
            Call::Delete { id } => self.delete(reply, &id),
            Call::ReopenLog { id } => self.reopen_log(&id).map(|()| Some(Answer::Done)),
            Call::State => Ok(Some(Answer::State(Box::new(self.state())))),
            Call::Shutdown => self.shutdown(reply),
        }
    }

    /// First words of this monitor.
    pub fn welcome(&self) -> Welcome {
        Welcome {
            version: protocol::VERSION,
            pod_id: self.id.clone(),
            monitor_pid: own_pid(),
            pod_init: self.init.as_ref().map(|init| init.pid),
        }
    }

    fn state(&self) -> MonitorState {
        MonitorState {
            version: protocol::VERSION,
            monitor_pid: own_pid(),
            pod_init: self.init.as_ref().map(|init| init.pid),
            containers: self.containers.values().map(|container| container.state()).collect(),
            execs: self.execs.iter().map(|(id, session)| session.state(id)).collect(),
            ended_execs: self.ended_execs.iter().cloned().collect(),
        }
    }

    fn signal(&mut self, target: &Target, signal: i32) -> Result<(), Failure> {
        if !(1..=LAST_SIGNAL).contains(&signal) {
            return Err(Failure::new(FailureKind::InvalidArgument, format!("{signal} is not a signal")));
        }
        let id = match target {
            Target::Exec(id) => return self.signal_exec(id, signal),
            Target::Container(id) => id,
        };
        match &self.container(id)?.phase {
            Phase::Creating => {
                Err(Failure::new(FailureKind::FailedPrecondition, format!("container {id} is being created")))
            }
            Phase::Alive(process) => send_signal(&process.pidfd, signal),
            Phase::Ending { .. } | Phase::Ended { .. } => Ok(()),
        }
    }

    fn reopen_log(&mut self, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        if matches!(container.phase, Phase::Ended { .. }) && container.outputs.is_empty() {
            return Err(Failure::new(FailureKind::FailedPrecondition, format!("container {id} has exited")));
        }
        container
            .log
            .reopen()
            .map_err(|error| Failure::io(format!("reopening the log of container {id}"), error))
    }

    fn shutdown(&mut self, reply: ReplyTo) -> Outcome {
        if self.ending.is_some() {
            return Err(Failure::new(
                FailureKind::FailedPrecondition,
                "the monitor is shutting down already",
            ));
        }
        self.ending = Some(Ending { reply, deadline: Instant::now() + SHUTDOWN, failures: Vec::new() });
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            self.begin_deletion(&id, None);
        }
        self.end_if_empty();
        Ok(None)
    }

    pub(super) fn container(
        &mut self,
        id: &str,
    ) -> Result<&mut crate::monitor::container::Container, Failure> {
        let missing =
            || Failure::new(FailureKind::NotFound, format!("container {id} is not known to its monitor"));
        self.containers.get_mut(id).ok_or_else(missing)
    }

    /// Answers a call, if somebody waits and is still there.
    pub(super) fn reply(&mut self, to: Option<ReplyTo>, outcome: Result<Answer, Failure>) {
        self.reply_with(to, outcome, Vec::new());
    }

    pub(super) fn reply_with(
        &mut self,
        to: Option<ReplyTo>,
        outcome: Result<Answer, Failure>,
        fds: Vec<OwnedFd>,
    ) {
        let Some(ReplyTo { connection, number }) = to else { return };
        let message = match outcome {
            Ok(answer) => FromMonitor::Answer { number, answer },
            Err(failure) => FromMonitor::Failed { number, failure },
        };
        self.send(connection, &message, fds);
    }

    /// Tells every daemon that listens.
    pub(super) fn announce(&mut self, event: Event) {
        let message = FromMonitor::Event(event);
        let listeners =
            self.connections.iter().filter(|(_, connection)| connection.greeting == Greeting::Received);
        let tokens: Vec<Token> = listeners.map(|(token, _)| *token).collect();
        for token in tokens {
            self.send(token, &message, Vec::new());
        }
    }

    fn send(&mut self, token: Token, message: &FromMonitor, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match Outgoing::new(message, fds).and_then(|frame| connection.send(frame)) {
            Ok(()) => self.update_interest(token),
            Err(_) => self.disconnect(token),
        }
    }

    fn update_interest(&mut self, token: Token) {
        let Some(connection) = self.connections.get(&token) else { return };
        if self.poll.modify(token, connection.as_fd(), connection.interest()).is_err() {
            self.disconnect(token);
        }
    }
}

/// Sends a signal; already gone is success.
pub(super) fn send_signal(pidfd: &OwnedFd, signal: i32) -> Result<(), Failure> {
    match sys::pidfd_send_signal(pidfd, signal) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(Failure::io("sending a signal", error))
        }
        _ => Ok(()),
    }
}

/// The number of a call whose body is not understood.
fn call_number(body: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    value.get("call")?.get("number")?.as_u64()
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

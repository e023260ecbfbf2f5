//! The pod: everything the monitor holds, and the loop that waits for all of it at once.
//!
//! `calls` serves daemons, `lifecycle` runs create and start, `deletion` delete, `exec` runs execs, `attach` keeps
//! clients of containers' streams, `exits` reaps.

mod attach;
mod calls;
mod deletion;
mod exec;
mod exits;
mod lifecycle;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::connection::{Connection, Greeting, ReplyTo};
use super::container::{Container, Phase};
use super::invocation::{ExitStatus, Invocation, InvocationId, Launcher};
use super::namespaces::PodInit;
use super::oom::PodKills;
use super::output::{Output, Pump, Scratch, read_once};
use super::poll::{Poll, Token};
use super::protocol::{Answer, ExecEnd, Failure};
use super::sys;
use crate::model::id::PodId;
use exec::ExecSession;

/// Connections served at once; beyond, the oldest goes.
const MAX_CONNECTIONS: usize = 8;
/// How long the last answers may take to leave at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A pod and its monitor's whole state.
pub struct Pod {
    id: PodId,
    boot_id: String,
    poll: Poll<Source>,
    signals: OwnedFd,
    listener: UnixListener,
    connections: BTreeMap<Token, Connection>,
    launcher: Launcher,
    containers: BTreeMap<String, Container>,
    kills: PodKills,
    execs: BTreeMap<String, ExecSession>,
    ended_execs: VecDeque<ExecEnd>,
    invocations: BTreeMap<InvocationId, Invocation>,
    children: BTreeMap<i32, Child>,
    /// Children that ended before anybody knew what they are: the OCI runtime names its process only at its end.
    unclaimed: BTreeMap<i32, ExitStatus>,
    init: Option<PodInit>,
    scratch: Box<Scratch>,
    ending: Option<Ending>,
    finished: bool,
}

/// What a descriptor stands for.
#[derive(Debug, Clone)]
enum Source {
    Signals,
    Listener,
    Connection,
    Output(String),
    Attachment(String),
}

/// What a child process is.
#[derive(Debug, Clone)]
enum Child {
    Invocation(InvocationId),
    Main(String),
    Exec(String),
    Saver(String),
    Init,
}

/// A shutdown under way.
#[derive(Debug)]
struct Ending {
    reply: ReplyTo,
    deadline: Instant,
    failures: Vec<String>,
}

/// What start-up has made.
pub struct Beginnings {
    /// The pod.
    pub id: PodId,
    /// Its init.
    pub init: Option<PodInit>,
    /// How to run the OCI runtime.
    pub launcher: Launcher,
    /// Where daemons connect.
    pub listener: UnixListener,
    /// The connection of the daemon that started this.
    pub link: UnixStream,
}

impl Pod {
    /// A pod without containers. SIGCHLD and the signals to ignore are blocked already.
    pub fn new(beginnings: Beginnings) -> io::Result<Self> {
        let Beginnings { id, init, launcher, listener, link } = beginnings;
        let mut poll = Poll::new()?;
        let signals = sys::signal_fd(&super::startup::SIGNALS)?;
        poll.add(&signals, Source::Signals)?;
        listener.set_nonblocking(true)?;
        poll.add(&listener, Source::Listener)?;
        let mut children = BTreeMap::new();
        children.extend(init.as_ref().map(|init| (init.pid, Child::Init)));
        let mut pod = Self {
            id,
            boot_id: super::clock::boot_id(),
            poll,
            signals,
            listener,
            connections: BTreeMap::new(),
            launcher,
            containers: BTreeMap::new(),
            kills: PodKills::default(),
            execs: BTreeMap::new(),
            ended_execs: VecDeque::new(),
            invocations: BTreeMap::new(),
            children,
            unclaimed: BTreeMap::new(),
            init,
            scratch: Box::new([0; size_of::<Scratch>()]),
            ending: None,
            finished: false,
        };
        pod.connect(link, Greeting::Received)?;
        Ok(pod)
    }

    /// Serves until a daemon asks for the end.
    pub fn run(mut self) -> io::Result<()> {
        while !self.finished {
            let timeout = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            for (token, source) in self.poll.wait(timeout)? {
                match source {
                    Source::Signals => self.reap(),
                    Source::Listener => self.accept(),
                    Source::Connection => self.serve(token),
                    Source::Output(container) => self.output_ready(token, &container),
                    Source::Attachment(container) => self.attachment_gone(token, &container),
                }
            }
            self.expire(Instant::now());
        }
        if let Some(init) = self.init.take() {
            let _ended_already = sys::pidfd_send_signal(&init.pidfd, libc::SIGKILL);
        }
        self.say_goodbye();
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let lingering = self.containers.values().filter_map(|container| container.linger_until);
        lingering.chain(self.ending.as_ref().map(|ending| ending.deadline)).min()
    }

    fn expire(&mut self, now: Instant) {
        let due = |(id, container): (&String, &Container)| {
            container.linger_until.is_some_and(|at| at <= now).then(|| id.clone())
        };
        let due: Vec<String> = self.containers.iter().filter_map(due).collect();
        for id in due {
            self.close_outputs(&id);
        }
        if self.ending.as_ref().is_some_and(|ending| ending.deadline <= now) {
            self.end();
        }
    }

    fn accept(&mut self) {
        let own = rustix::process::geteuid();
        while let Ok((socket, _)) = self.listener.accept() {
            if rustix::net::sockopt::socket_peercred(&socket)
                .is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
            {
                while self.connections.len() >= MAX_CONNECTIONS {
                    self.drop_oldest_connection();
                }
                let _refused = self.connect(socket, Greeting::Awaited);
            }
        }
    }

    /// Strangers go before daemons.
    fn drop_oldest_connection(&mut self) {
        let strangers =
            self.connections.iter().filter(|(_, connection)| connection.greeting == Greeting::Awaited);
        let oldest = strangers.map(|(token, _)| *token).next().or(self.connections.keys().next().copied());
        if let Some(token) = oldest {
            self.disconnect(token);
        }
    }

    fn connect(&mut self, socket: UnixStream, greeting: Greeting) -> io::Result<()> {
        let connection = Connection::new(socket, greeting)?;
        let token = self.poll.add(connection.as_fd(), Source::Connection)?;
        self.connections.insert(token, connection);
        Ok(())
    }

    fn disconnect(&mut self, token: Token) {
        if let Some(connection) = self.connections.remove(&token) {
            self.poll.remove(token, connection.as_fd());
        }
    }

    fn output_ready(&mut self, token: Token, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(at) = container.outputs.iter().position(|output| output.token == Some(token)) else {
            return;
        };
        let found = if matches!(container.phase, Phase::Creating) {
            let found = read_once(container.outputs[at].as_fd(), &mut *self.scratch);
            if let Pump::Some(count) = found {
                container.capture(&self.scratch[..count]);
            }
            found
        } else {
            let attached = &mut container.attachments;
            let found = container.outputs[at].pump(&mut self.scratch, &mut container.log, attached);
            container.log.flush();
            self.detach_lagging(id);
            found
        };
        if let Some(container) = self.containers.get_mut(id)
            && found == Pump::End
        {
            let output = container.outputs.swap_remove(at);
            self.close_output(id, output);
        }
    }

    fn close_output(&mut self, id: &str, mut output: Output) {
        if let Some(token) = output.token {
            self.poll.remove(token, output.as_fd());
        }
        if let Some(container) = self.containers.get_mut(id) {
            output.finish(&mut container.log);
            container.log.flush();
            if container.outputs.is_empty() {
                container.linger_until = None;
            }
        }
        self.end_stream(id, output.stream());
    }

    fn close_outputs(&mut self, id: &str) {
        let outputs = self.containers.get_mut(id).map(|container| std::mem::take(&mut container.outputs));
        for output in outputs.into_iter().flatten() {
            self.close_output(id, output);
        }
    }

    /// Ends the monitor if a shutdown is under way and nothing is left to wait for.
    fn end_if_empty(&mut self) {
        if self.ending.is_some() && self.containers.is_empty() {
            self.end();
        }
    }

    fn end(&mut self) {
        let Some(mut ending) = self.ending.take() else { return };
        ending
            .failures
            .extend(self.containers.keys().map(|id| format!("container {id} did not end in time")));
        for invocation in self.invocations.values_mut() {
            invocation.abort();
        }
        let outcome = match ending.failures.is_empty() {
            true => Ok(Answer::Done),
            false => Err(Failure::new(super::protocol::FailureKind::Internal, ending.failures.join("; "))),
        };
        self.reply(Some(ending.reply), outcome);
        self.finished = true;
    }

    fn say_goodbye(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        for connection in self.connections.values_mut() {
            while connection.flush().is_ok() && connection.interest() == super::poll::Interest::ReadWrite {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() || !writable(connection.as_fd(), left) {
                    break;
                }
            }
        }
    }
}

fn writable(fd: impl AsFd, timeout: Duration) -> bool {
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos().max(1)) };
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::OUT)];
    rustix::event::poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// The path of the files of invocations inside a pod's directory.
pub fn invocation_directory(pod: &std::path::Path) -> PathBuf {
    pod.join("runtime")
}

//! The connection to one monitor: a task that reads, a task that writes, calls that wait for their number.
//!
//! A connection may end without the monitor's end (a daemon that was stopped for so long that its monitor gave it
//! up). So the reader connects anew before it declares the monitor gone, and tells what happened in between.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::MonitorError;
use crate::monitor::protocol::{
    self, Answer, Call, ContainerStatus, Event, Failure, FromMonitor, ToMonitor, Welcome,
};
use crate::monitor::wire::{Frame, FrameReader, Outgoing};

/// Calls that may wait for the socket.
const QUEUE: usize = 64;
/// Events kept for a receiver that lags. Their memory is taken per pod from the beginning: 200 bytes each.
const EVENTS: usize = 256;

/// Number of the call that the link makes by itself.
const OWN_CALL: u64 = 0;
/// Attempts to find a monitor again that is there and does not greet.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// How long a monitor whose socket is gone may take to end.
const DYING: Duration = Duration::from_secs(1);

type Reply = Result<(Answer, Vec<OwnedFd>), Failure>;

/// A connection that is found again when lost.
#[derive(Debug, Clone)]
pub(super) struct Link {
    shared: Arc<Shared>,
    /// Ends the task when the last clone goes.
    _alive: Arc<watch::Sender<()>>,
}

#[derive(Debug)]
struct Shared {
    welcome: Welcome,
    socket: PathBuf,
    number: AtomicU64,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
    gone: watch::Sender<bool>,
    reconnects: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Where frames go; `None` while there is no connection.
    writer: Option<mpsc::Sender<Outgoing>>,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
    /// Containers whose exit was told.
    exited: HashSet<String>,
}

/// A socket, what was read from it beyond the last whole frame, and who is behind it.
#[derive(Debug)]
struct Wire {
    stream: UnixStream,
    reader: FrameReader,
    process: OwnedFd,
}

impl Link {
    /// Says `hello` and waits for the welcome. `socket` is where the monitor is found again.
    pub(super) async fn open(
        stream: StdStream,
        socket: PathBuf,
        hello: &ToMonitor,
    ) -> Result<Self, MonitorError> {
        let (wire, welcome) = greet(stream, &socket, hello).await?;
        let (alive, task_alive) = watch::channel(());
        let shared = Arc::new(Shared {
            welcome,
            socket,
            number: AtomicU64::new(OWN_CALL + 1),
            state: Mutex::default(),
            events: broadcast::channel(EVENTS).0,
            gone: watch::channel(false).0,
            reconnects: watch::channel(0).0,
        });
        let frames = shared.connected();
        tokio::spawn(keep(shared.clone(), wire, frames, task_alive));
        Ok(Self { shared, _alive: Arc::new(alive) })
    }

    pub(super) fn welcome(&self) -> &Welcome {
        &self.shared.welcome
    }

    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    pub(super) fn reconnects(&self) -> watch::Receiver<u64> {
        self.shared.reconnects.subscribe()
    }

    pub(super) async fn gone(&self) {
        let mut gone = self.shared.gone.subscribe();
        // Fails only without a sender, which `self` holds.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Sends a call and waits for what the monitor says, at most `limit`.
    pub(super) async fn call(
        &self,
        (stage, limit): (&'static str, Duration),
        call: Call,
        fds: Vec<OwnedFd>,
    ) -> Result<(Answer, Vec<OwnedFd>), MonitorError> {
        let number = self.shared.number.fetch_add(1, Ordering::Relaxed);
        let frame = Outgoing::new(&ToMonitor::Call { number, call }, fds)
            .map_err(|source| MonitorError::Encode { stage, source })?;
        let waiting = Waiting { shared: &self.shared, number };
        let reply = async {
            let (writer, reply) = waiting.register().ok_or(MonitorError::Lost { stage })?;
            writer.send(frame).await.map_err(|_| MonitorError::Lost { stage })?;
            reply.await.map_err(|_| MonitorError::Lost { stage })
        };
        match super::within(limit, stage, reply).await?? {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(MonitorError::Refused { stage, failure }),
        }
    }
}

/// A call's place in the table; given up when the caller is.
struct Waiting<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Waiting<'_> {
    fn register(&self) -> Option<(mpsc::Sender<Outgoing>, oneshot::Receiver<Reply>)> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.shared.lock();
        let writer = state.writer.clone()?;
        state.waiting.insert(self.number, sender);
        Some((writer, receiver))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.number);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self) -> mpsc::Receiver<Outgoing> {
        let (writer, frames) = mpsc::channel(QUEUE);
        self.lock().writer = Some(writer);
        frames
    }

    fn disconnected(&self) {
        let mut state = self.lock();
        state.writer = None;
        // Dropped senders fail their calls.
        state.waiting.clear();
    }

    fn dispatch(&self, frame: Frame) -> io::Result<()> {
        match serde_json::from_slice(&frame.body)? {
            FromMonitor::Answer { number: OWN_CALL, answer } => self.catch_up(answer),
            FromMonitor::Answer { number, answer } => self.answer(number, Ok((answer, frame.fds))),
            FromMonitor::Failed { number, failure } => self.answer(number, Err(failure)),
            FromMonitor::Event(event) => self.tell(event),
            FromMonitor::Welcome(_) | FromMonitor::SetupFailed(_) => {}
        }
        Ok(())
    }

    fn answer(&self, number: u64, reply: Reply) {
        if let Some(waiting) = self.lock().waiting.remove(&number) {
            let _caller_gone = waiting.send(reply);
        }
    }

    fn tell(&self, event: Event) {
        if let Event::ContainerExited(record) = &event {
            self.lock().exited.insert(record.container_id.to_string());
        }
        let _nobody_listens = self.events.send(event);
    }

    /// Tells the starts and exits that happened without a connection.
    fn catch_up(&self, answer: Answer) {
        let Answer::State(state) = answer else { return };
        for container in state.containers {
            match container.status {
                ContainerStatus::Running { started_at_ns, .. } => {
                    self.tell(Event::ContainerStarted { id: container.id, started_at_ns });
                }
                ContainerStatus::Exited { record, .. } if !self.lock().exited.contains(&container.id) => {
                    self.tell(Event::ContainerExited(record));
                }
                _others => {}
            }
        }
    }
}

/// Serves the connection, and finds the monitor again when it is lost, until the monitor or the last [`Link`] is gone.
async fn keep(
    shared: Arc<Shared>,
    mut wire: Wire,
    mut frames: mpsc::Receiver<Outgoing>,
    mut alive: watch::Receiver<()>,
) {
    loop {
        tokio::select! {
            _lost = serve(&shared, &mut wire, &mut frames) => {}
            _dropped = alive.changed() => return,
        }
        shared.disconnected();
        let Some(found) = find_again(&shared.socket).await else {
            // Its socket is gone first; its lock, its pod init and its memory follow.
            let _still_dying = tokio::time::timeout(DYING, end_of(&wire.process)).await;
            break;
        };
        wire = found;
        frames = shared.connected();
        let catch_up = Outgoing::new(&ToMonitor::Call { number: OWN_CALL, call: Call::State }, Vec::new());
        if let (Ok(frame), Some(writer)) = (catch_up, shared.lock().writer.clone()) {
            let _queue_is_new_and_empty = writer.try_send(frame);
        }
        shared.reconnects.send_modify(|count| *count += 1);
    }
    shared.gone.send_replace(true);
    let _nobody_listens = shared.events.send(Event::Gone);
}

async fn find_again(socket: &Path) -> Option<Wire> {
    for _ in 0..ATTEMPTS {
        match super::connect(socket) {
            Ok(stream) => {
                let hello = ToMonitor::Hello { version: protocol::VERSION };
                let greeted =
                    super::within(super::ATTACH, "attaching to the monitor", greet(stream, socket, &hello));
                if let Ok(Ok((wire, _))) = greeted.await {
                    return Some(wire);
                }
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                break;
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

async fn greet(stream: StdStream, socket: &Path, hello: &ToMonitor) -> Result<(Wire, Welcome), MonitorError> {
    let failed = |source| MonitorError::attach(socket, source);
    stream.set_nonblocking(true).map_err(failed)?;
    let stream = UnixStream::from_std(stream).map_err(failed)?;
    let mut reader = FrameReader::default();
    let mut frame = Outgoing::new(hello, Vec::new()).map_err(failed)?;
    stream.async_io(Interest::WRITABLE, || frame.send(&stream)).await.map_err(failed)?;
    let frame = read(&stream, &mut reader).await.map_err(failed)?;
    match serde_json::from_slice(&frame.body).map_err(|error| failed(error.into()))? {
        FromMonitor::Welcome(welcome) if (1..=protocol::VERSION).contains(&welcome.version) => {
            let process = open_process(welcome.monitor_pid).map_err(failed)?;
            Ok((Wire { stream, reader, process }, welcome))
        }
        FromMonitor::Welcome(welcome) => {
            Err(MonitorError::Version { pod: welcome.pod_id.to_string(), theirs: welcome.version })
        }
        FromMonitor::SetupFailed(failure) => Err(MonitorError::Setup(failure)),
        other => {
            Err(MonitorError::Unexpected { stage: "greeting the monitor", answer: format!("{other:?}") })
        }
    }
}

fn open_process(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Waits until the process has ended. Blocks.
pub(super) fn wait_for_end(process: &OwnedFd, patience: Duration) -> io::Result<()> {
    let timeout = Timespec { tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ended => Ok(()),
    }
}

/// Returns when the process has ended.
async fn end_of(process: &OwnedFd) {
    loop {
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) | Err(rustix::io::Errno::INTR) => tokio::time::sleep(Duration::from_millis(1)).await,
            _ => return,
        }
    }
}

async fn read(stream: &UnixStream, reader: &mut FrameReader) -> io::Result<Frame> {
    loop {
        if let Some(frame) = reader.next_frame()? {
            return Ok(frame);
        }
        if !stream.async_io(Interest::READABLE, || reader.receive(stream)).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Ends when the connection does.
async fn serve(shared: &Shared, wire: &mut Wire, frames: &mut mpsc::Receiver<Outgoing>) -> io::Result<()> {
    let Wire { stream, reader, .. } = wire;
    let stream = &*stream;
    let reading = async {
        loop {
            shared.dispatch(read(stream, reader).await?)?;
        }
    };
    let writing = async {
        while let Some(mut frame) = frames.recv().await {
            stream.async_io(Interest::WRITABLE, || frame.send(stream)).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

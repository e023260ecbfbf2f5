//! The streams that are open on one connection: their windows, and which of their halves have ended.
//!
//! A stream is in the table until both halves have ended or one side has reset it. No call here waits.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::DuplexStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// First size of every window, bytes (SPDY/3.1, 2.6.8), and what is kept of a stream that is not read.
pub const WINDOW: usize = 64 << 10;
/// Consumed bytes that are worth a frame.
const CREDIT: usize = WINDOW / 2;

/// What the writer says beside the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Nothing more is written to the stream.
    Last(u32),
    /// The stream is given up, with the protocol's code.
    Reset(u32, u32),
    /// So many bytes of the stream were consumed; of the whole connection where it is 0.
    Credit(u32, u32),
    /// A client that is gone will not answer, and its kernel will say so.
    Probe,
}

/// A window would be larger than the protocol can say.
#[derive(Debug, PartialEq, Eq)]
pub struct Overflow;

/// The table.
#[derive(Default)]
pub struct Table {
    inner: Mutex<Inner>,
    /// Told when there are marks.
    pub marked: Notify,
    /// The client is gone.
    pub gone: CancellationToken,
    /// The session ends; the client has some time to take what is on its way.
    pub over: CancellationToken,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<u32, Entry>,
    marks: Vec<Mark>,
    consumed: usize,
    /// Windows bind only once the client has shown that it keeps them: the Go implementation that every Kubernetes
    /// client uses never sends an update, and would get no more than 64 KiB.
    keeps_windows: bool,
    keeps_connection_window: bool,
    initial_window: Option<i64>,
    connection_window: i64,
}

struct Entry {
    pipe: Option<DuplexStream>,
    receiving: bool,
    sending: bool,
    window: i64,
    consumed: usize,
    waker: Option<Waker>,
}

impl Table {
    /// Adds a stream; what the client sends goes into `pipe`.
    pub fn open(&self, id: u32, pipe: DuplexStream) {
        let mut inner = self.lock();
        let window = inner.initial_window.unwrap_or(WINDOW as i64);
        let entry =
            Entry { pipe: Some(pipe), receiving: true, sending: true, window, consumed: 0, waker: None };
        inner.entries.insert(id, entry);
    }

    /// Streams that are open.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether the stream is open for data from the client; `None` when there is no such stream.
    pub fn receives(&self, id: u32) -> Option<bool> {
        self.lock().entries.get(&id).map(|entry| entry.receiving)
    }

    /// Lends the pipe of a stream to the reader, which gives it back with [`Self::give_pipe`].
    pub fn take_pipe(&self, id: u32) -> Option<DuplexStream> {
        self.lock().entries.get_mut(&id)?.pipe.take()
    }

    /// Takes a pipe back, unless its stream has ended meanwhile.
    pub fn give_pipe(&self, id: u32, pipe: DuplexStream) {
        if let Some(entry) = self.lock().entries.get_mut(&id) {
            entry.pipe = Some(pipe);
        }
    }

    /// The client has half-closed the stream.
    pub fn received_last(&self, id: u32) {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.get_mut(&id) {
            entry.receiving = false;
            entry.pipe = None;
            if !entry.sending {
                inner.entries.remove(&id);
            }
        }
    }

    /// The client has reset the stream.
    pub fn received_reset(&self, id: u32) {
        let removed = self.lock().entries.remove(&id);
        wake(removed);
    }

    /// Half-closes the stream towards the client.
    pub fn end(&self, id: u32) {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(&id).filter(|entry| entry.sending) else { return };
        entry.sending = false;
        if !entry.receiving {
            inner.entries.remove(&id);
        }
        inner.marks.push(Mark::Last(id));
        self.marked.notify_one();
    }

    /// Gives the stream up both ways.
    pub fn reset(&self, id: u32, code: u32) {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.remove(&id) {
            inner.marks.push(Mark::Reset(id, code));
            self.marked.notify_one();
            drop(inner);
            wake(Some(entry));
        }
    }

    /// Counts bytes of a stream that need no more room here.
    pub fn consumed(&self, id: u32, bytes: usize) {
        let mut inner = self.lock();
        let mut credits = [None, None];
        inner.consumed += bytes;
        if inner.consumed >= CREDIT {
            credits[0] = Some(Mark::Credit(0, std::mem::take(&mut inner.consumed) as u32));
        }
        if let Some(entry) = inner.entries.get_mut(&id).filter(|entry| entry.receiving) {
            entry.consumed += bytes;
            if entry.consumed >= CREDIT {
                credits[1] = Some(Mark::Credit(id, std::mem::take(&mut entry.consumed) as u32));
            }
        }
        for credit in credits.into_iter().flatten() {
            inner.credit(credit);
            self.marked.notify_one();
        }
    }

    /// Asks whether the client is still there, once at a time.
    pub fn probe(&self) {
        let mut inner = self.lock();
        if !inner.marks.contains(&Mark::Probe) {
            inner.marks.push(Mark::Probe);
            self.marked.notify_one();
        }
    }

    /// Takes what is to be said beside the queue.
    pub fn take_marks(&self) -> Vec<Mark> {
        std::mem::take(&mut self.lock().marks)
    }

    /// How much of `wanted` may be written to the stream now; it is taken from the windows. `None` when the stream has
    /// ended; pending while a window is used up.
    pub fn poll_allowance(&self, id: u32, wanted: usize, context: &mut Context<'_>) -> Poll<Option<usize>> {
        let mut inner = self.lock();
        let window = inner.connection_window + WINDOW as i64;
        let connection = if inner.keeps_connection_window { window } else { i64::MAX };
        let bound = inner.keeps_windows;
        let Some(entry) = inner.entries.get_mut(&id).filter(|entry| entry.sending) else {
            return Poll::Ready(None);
        };
        let stream = if bound { entry.window } else { i64::MAX };
        let allowed = stream.min(connection).min(wanted as i64);
        if allowed <= 0 {
            entry.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(allowed as usize))
    }

    /// Counts bytes that are written to the stream.
    pub fn sent(&self, id: u32, bytes: usize) {
        let mut inner = self.lock();
        inner.connection_window = inner.connection_window.saturating_sub(bytes as i64);
        if let Some(entry) = inner.entries.get_mut(&id) {
            entry.window = entry.window.saturating_sub(bytes as i64);
        }
    }

    /// The client has room for `delta` more bytes of a stream, or of the connection where `id` is 0.
    pub fn widen(&self, id: u32, delta: u32) -> Result<(), Overflow> {
        let mut inner = self.lock();
        let window = if id == 0 {
            inner.keeps_connection_window = true;
            Some(&mut inner.connection_window)
        } else {
            inner.keeps_windows = true;
            inner.entries.get_mut(&id).map(|entry| &mut entry.window)
        };
        if let Some(window) = window {
            *window += i64::from(delta);
            if *window > i64::from(i32::MAX) {
                return Err(Overflow);
            }
        }
        inner.wake_all();
        Ok(())
    }

    /// The client says with what window its streams begin.
    pub fn set_initial_window(&self, size: u32) {
        let mut inner = self.lock();
        inner.keeps_windows = true;
        let change = i64::from(size) - inner.initial_window.unwrap_or(WINDOW as i64);
        inner.initial_window = Some(i64::from(size));
        for entry in inner.entries.values_mut() {
            entry.window = entry.window.saturating_add(change);
        }
        inner.wake_all();
    }

    /// The connection has ended: every stream ends, both ways.
    pub fn leave(&self) {
        let entries = std::mem::take(&mut self.lock().entries);
        self.gone.cancel();
        entries.into_values().for_each(|entry| wake(Some(entry)));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code that holds the table panics")
    }
}

impl Inner {
    /// Adds a credit to one that is not yet said, so that there is one at most for each stream.
    fn credit(&mut self, credit: Mark) {
        let Mark::Credit(id, bytes) = credit else { return };
        for mark in &mut self.marks {
            if let Mark::Credit(to, waiting) = mark
                && *to == id
            {
                *waiting = waiting.saturating_add(bytes);
                return;
            }
        }
        self.marks.push(credit);
    }

    fn wake_all(&mut self) {
        for entry in self.entries.values_mut() {
            if let Some(waker) = entry.waker.take() {
                waker.wake();
            }
        }
    }
}

fn wake(entry: Option<Entry>) {
    if let Some(waker) = entry.and_then(|entry| entry.waker) {
        waker.wake();
    }
}

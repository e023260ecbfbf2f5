//! The life of a connection: reading beside writing, until one of them ends or time is up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::table::Table;
use super::{Encode, End, Hangup, Outgoing, QUEUE};

/// How long last words may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often a client is asked whether it is there while it is not read.
const PROBE: Duration = Duration::from_secs(2);

/// Limits of a connection.
#[derive(Clone)]
pub struct Limits {
    /// A connection on which nothing is said for so long is closed.
    pub idle: Duration,
    /// How long a client may take to read what is left when its session is over.
    pub finish: Duration,
    started: Instant,
    /// Milliseconds after `started`.
    active: Arc<AtomicU64>,
}

impl Limits {
    /// Limits that begin to count now.
    pub fn new(idle: Duration, finish: Duration) -> Self {
        Self { idle, finish, started: Instant::now(), active: Arc::default() }
    }

    /// Something was said.
    pub fn touch(&self) {
        self.active.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Done when nothing was said for too long.
    async fn idle(&self) {
        loop {
            let active = self.started + Duration::from_millis(self.active.load(Ordering::Relaxed));
            if active.elapsed() >= self.idle {
                return;
            }
            tokio::time::sleep_until(active + self.idle).await;
        }
    }

    async fn overdue(&self, table: &Table) {
        table.over.cancelled().await;
        tokio::time::sleep(self.finish).await;
    }
}

/// Runs a connection until its client is gone; then every stream of `table` has ended.
pub async fn drive(
    table: &Table,
    limits: &Limits,
    receive: impl Future<Output = End>,
    mut sender: Sending<impl AsyncWrite + Unpin, impl Encode>,
) {
    let end = tokio::select! {
        end = receive => end,
        _broken = sender.run(table, limits) => End::Gone,
        () = limits.idle() => End::Gone,
        () = limits.overdue(table) => End::Gone,
    };
    table.leave();
    // A client that does not take its last words has had its chance.
    let _late = tokio::time::timeout(FAREWELL, sender.leave(end)).await;
}

/// The writing half of a connection.
pub struct Sending<W, E> {
    write: W,
    encode: E,
    queue: mpsc::Receiver<Outgoing>,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin, E: Encode> Sending<W, E> {
    /// Writes what is put into `queue`, as `encode` says it.
    pub fn new(write: W, encode: E, queue: mpsc::Receiver<Outgoing>) -> Self {
        Self { write, encode, queue, buffer: BytesMut::new() }
    }

    /// Writes until that fails.
    async fn run(&mut self, table: &Table, limits: &Limits) -> std::io::Result<()> {
        loop {
            self.collect(table);
            if self.buffer.is_empty() {
                tokio::select! {
                    outgoing = self.queue.recv() => match outgoing {
                        Some(outgoing) => self.encode.outgoing(outgoing, &mut self.buffer),
                        // Nobody can say anything more; the client's end is still waited for.
                        None => std::future::pending().await,
                    },
                    () = table.marked.notified() => continue,
                }
            }
            while !self.buffer.is_empty() {
                self.write.write_buf(&mut self.buffer).await?;
                limits.touch();
            }
            self.write.flush().await?;
        }
    }

    /// Encodes what there is to say. Marks were set after what is in the queue for their streams, so they come after it.
    fn collect(&mut self, table: &Table) {
        let marks = table.take_marks();
        for _place in 0..QUEUE {
            match self.queue.try_recv() {
                Ok(outgoing) => self.encode.outgoing(outgoing, &mut self.buffer),
                Err(_empty) => break,
            }
        }
        for mark in marks {
            self.encode.mark(mark, &mut self.buffer);
        }
    }

    /// Finishes the frame that was being written, says why the connection ends, and closes it.
    async fn leave(&mut self, end: End) -> std::io::Result<()> {
        if let End::Farewell(code) = end {
            self.encode.farewell(code, &mut self.buffer);
            self.write.write_all_buf(&mut self.buffer).await?;
        }
        self.write.shutdown().await
    }
}

/// Gives what the client sent to the stream that it is for. Waits while the stream is full; what nobody reads any more
/// is dropped. An error when the client went meanwhile.
pub async fn deliver(table: &Table, hangup: &Hangup, id: u32, bytes: Bytes) -> Result<(), End> {
    let Some(mut pipe) = table.take_pipe(id) else {
        table.consumed(id, bytes.len());
        return Ok(());
    };
    let written = tokio::select! {
        biased;
        written = pipe.write_all(&bytes) => written,
        () = hangup.wait() => return Err(End::Gone),
        never = probe(table) => match never {},
    };
    match written {
        Ok(()) => table.give_pipe(id, pipe),
        Err(_reader_gone) => table.consumed(id, bytes.len()),
    }
    Ok(())
}

/// Asks a client that is not read whether it is still there: its end may wait, behind what it sent, for room here.
async fn probe(table: &Table) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(PROBE).await;
        table.probe();
    }
}

//! The session's ends of a connection and of its streams.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, PollSender};

use super::table::{Table, WINDOW};
use super::{Outgoing, PIECE};

/// One connection, as its session sees it.
#[derive(Clone)]
pub struct Handle {
    table: Arc<Table>,
    queue: mpsc::Sender<Outgoing>,
}

/// Both directions of a stream.
pub struct Stream {
    /// Its number on the connection.
    pub id: u32,
    /// From the client.
    pub reader: Reader,
    /// To the client.
    pub writer: Writer,
}

/// A stream that the client asks for; what it sends is kept meanwhile.
pub struct Arrived {
    /// What it is for; names are in lower case.
    pub headers: BTreeMap<String, String>,
    stream: Stream,
    handle: Handle,
}

/// Reads what the client sends. Ends when the client half-closes or resets the stream, or is gone.
pub struct Reader {
    id: u32,
    pipe: DuplexStream,
    table: Arc<Table>,
}

/// Writes to the client: waits while the client does not take it, fails when the stream was reset or the client is
/// gone. Shutting it down, or dropping it, half-closes the stream.
pub struct Writer {
    id: u32,
    queue: PollSender<Outgoing>,
    table: Arc<Table>,
}

impl Handle {
    /// A connection without streams, and the end of its queue.
    pub fn new() -> (Self, mpsc::Receiver<Outgoing>) {
        let (queue, outgoing) = mpsc::channel(super::QUEUE);
        (Self { table: Arc::new(Table::default()), queue }, outgoing)
    }

    /// Its streams.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Adds a stream.
    pub fn open(&self, id: u32) -> Stream {
        let (inside, pipe) = tokio::io::duplex(WINDOW);
        self.table.open(id, inside);
        let queue = PollSender::new(self.queue.clone());
        Stream {
            id,
            reader: Reader { id, pipe, table: self.table.clone() },
            writer: Writer { id, queue, table: self.table.clone() },
        }
    }

    /// A stream that the session may still refuse.
    pub fn arrive(&self, id: u32, headers: BTreeMap<String, String>) -> Arrived {
        Arrived { headers, stream: self.open(id), handle: self.clone() }
    }

    /// Puts something into the queue of the connection. Waits while that is full; nothing happens when the connection
    /// has ended.
    pub async fn say(&self, outgoing: Outgoing) {
        // An ended connection tells its session by `gone`.
        let _ended = self.queue.send(outgoing).await;
    }

    /// From now on the client has a limited time to take what is left.
    pub fn hurry(&self) {
        self.table.over.cancel();
    }

    /// Says that the session is over, and waits until the client has left.
    pub async fn finish(&self) {
        self.hurry();
        self.say(Outgoing::Over).await;
        self.table.gone.cancelled().await;
    }

    /// Gives a stream up both ways, with the protocol's code.
    pub fn reset(&self, id: u32, code: u32) {
        self.table.reset(id, code);
    }

    /// Done when the client is gone.
    pub fn gone(&self) -> CancellationToken {
        self.table.gone.clone()
    }
}

impl Arrived {
    /// Its number on the connection.
    pub fn id(&self) -> u32 {
        self.stream.id
    }

    /// Tells the client that the stream is open.
    pub async fn accept(self) -> Stream {
        self.handle.say(Outgoing::Accept(self.stream.id)).await;
        self.stream
    }

    /// Tells the client that there will be no such stream.
    pub async fn refuse(self, code: u32) {
        self.handle.table.received_reset(self.stream.id);
        self.handle.say(Outgoing::Refuse(self.stream.id, code)).await;
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.table.consumed(self.id, read);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let wanted = bytes.len().min(PIECE);
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let this = &mut *self;
        // The windows are asked first: a place in the queue must not be held while waiting for them.
        ready!(this.table.poll_allowance(this.id, wanted, context)).ok_or_else(broken)?;
        ready!(this.queue.poll_reserve(context)).map_err(|_ended| broken())?;
        // Another stream may have used the connection's window up meanwhile.
        let Poll::Ready(allowed) = this.table.poll_allowance(this.id, wanted, context) else {
            this.queue.abort_send();
            return Poll::Pending;
        };
        let Some(allowed) = allowed else {
            this.queue.abort_send();
            return Poll::Ready(Err(broken()));
        };
        this.table.sent(this.id, allowed);
        let piece = Outgoing::Piece(this.id, Bytes::copy_from_slice(&bytes[..allowed]));
        this.queue.send_item(piece).map_err(|_ended| broken())?;
        Poll::Ready(Ok(allowed))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Result<()>> {
        self.table.end(self.id);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.table.end(self.id);
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::BrokenPipe, "the stream's client is gone")
}

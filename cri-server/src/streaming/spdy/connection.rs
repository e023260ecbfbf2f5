//! The server's side of a connection: which frames are allowed, and what is answered (2.3, 2.6).
//!
//! A breach of one stream's rules costs that stream; a breach of framing or compression costs the connection, and so
//! does a client that is refused too often.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader};
use tokio::sync::mpsc;

use super::frame::{CONTROL_LIMIT, Control, HEAD, Head, put_content_head};
use super::headers::{Deflater, Inflater};
use super::reset;
use crate::streaming::mux::{
    Arrived, Encode, End, Handle, Hangup, Limits, Mark, Outgoing, Overflow, PIECE, Part, Sending, deliver,
    drive,
};

/// Most streams open at once.
const STREAMS: usize = 512;
/// Streams that the session has not looked at yet.
const ARRIVALS: usize = 16;
/// Most refusals of one connection.
const REFUSALS: usize = 1000;
/// Number of the setting for the first size of windows (2.6.4).
const INITIAL_WINDOW_SIZE: u32 = 7;

const GOAWAY_PROTOCOL_ERROR: u32 = 1;

/// Runs a connection until its client is gone. `session` gets the streams and ends by [`Handle::finish`].
pub async fn serve<R, W, S>(
    (read, write): (R, W),
    hangup: Hangup,
    limits: Limits,
    session: impl FnOnce(mpsc::Receiver<Arrived>, Handle) -> S,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    S: Future<Output = ()>,
{
    let (handle, queue) = Handle::new();
    let (arrivals, arrived) = mpsc::channel(ARRIVALS);
    let table = handle.table().clone();
    let receiver = Receiver {
        read: BufReader::with_capacity(PIECE, read),
        hangup,
        limits: limits.clone(),
        inflater: Inflater::new(),
        handle: handle.clone(),
        arrivals: Some(arrivals),
        highest: 0,
        refusals: 0,
    };
    let sending = Sending::new(write, Encoder { deflater: None, last_good: 0 }, queue);
    tokio::join!(drive(&table, &limits, receiver.run(), sending), session(arrived, handle));
}

/// The reading half.
struct Receiver<R> {
    read: BufReader<R>,
    hangup: Hangup,
    limits: Limits,
    inflater: Inflater,
    handle: Handle,
    /// `None` once the client has said that it goes.
    arrivals: Option<mpsc::Sender<Arrived>>,
    /// Highest number of a stream that the client opened.
    highest: u32,
    refusals: usize,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    async fn run(mut self) -> End {
        loop {
            if let Err(end) = self.frame().await {
                return end;
            }
            self.limits.touch();
        }
    }

    async fn frame(&mut self) -> Result<(), End> {
        let mut head = [0; HEAD];
        self.read.read_exact(&mut head).await?;
        match Head::parse(head) {
            Head::Content { id, part, length } => self.content(id, part, length).await,
            Head::Control { length, .. } if length > CONTROL_LIMIT => Err(breach()),
            Head::Control { kind, version, flags, length } => {
                let mut payload = vec![0; length];
                self.read.read_exact(&mut payload).await?;
                let control = Control::parse(kind, version, flags, payload.into());
                self.control(control.map_err(|_malformed| breach())?).await
            }
        }
    }

    /// Passes a frame of data on in pieces, so that its size does not matter.
    async fn content(&mut self, id: u32, part: Part, mut length: usize) -> Result<(), End> {
        let receives = self.handle.table().receives(id);
        let refusal = match receives {
            _ if id == 0 || id > self.highest || id.is_multiple_of(2) => Some(reset::INVALID_STREAM),
            Some(false) => Some(reset::STREAM_ALREADY_CLOSED),
            // It was reset; the client may not know that yet.
            None | Some(true) => None,
        };
        while length > 0 {
            let mut piece = BytesMut::with_capacity(length.min(PIECE));
            let read = (&mut self.read).take(length.min(PIECE) as u64).read_buf(&mut piece).await?;
            if read == 0 {
                return Err(End::Gone);
            }
            self.limits.touch();
            length -= read;
            if receives == Some(true) {
                deliver(self.handle.table(), &self.hangup, id, piece.freeze()).await?;
            } else {
                self.handle.table().consumed(id, read);
            }
        }
        match refusal {
            Some(code) => self.refuse(id, code).await,
            None => {
                self.half_close(id, part);
                Ok(())
            }
        }
    }

    async fn control(&mut self, control: Control) -> Result<(), End> {
        match control {
            Control::SynStream { id, part, block } => self.open(id, part, &block).await?,
            // The server opens no streams that could be answered.
            Control::SynReply { block, .. } => drop(self.inflate(&block)?),
            Control::RstStream { id, .. } => self.handle.table().received_reset(id),
            Control::Settings(settings) => {
                for (_number, size) in settings.iter().filter(|(number, _)| *number == INITIAL_WINDOW_SIZE) {
                    let size = i32::try_from(*size).map_err(|_large| breach())?;
                    self.handle.table().set_initial_window(size.unsigned_abs());
                }
            }
            // Even numbers answer pings of the server.
            Control::Ping(number) if number.is_multiple_of(2) => {}
            Control::Ping(number) => {
                self.handle.say(Outgoing::Pong(Bytes::copy_from_slice(&number.to_be_bytes()))).await;
            }
            Control::GoAway { .. } => self.arrivals = None,
            Control::Headers { id, part, block } => {
                self.inflate(&block)?;
                self.half_close(id, part);
            }
            Control::WindowUpdate { id, delta } => match self.handle.table().widen(id, delta) {
                Ok(()) => {}
                Err(Overflow) if id == 0 => return Err(breach()),
                Err(Overflow) => self.handle.reset(id, reset::FLOW_CONTROL_ERROR),
            },
            Control::Unknown(_) => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, part: Part, block: &[u8]) -> Result<(), End> {
        // Whatever becomes of the stream, the state of the compression goes on with its block.
        let headers = self.inflate(block)?;
        if id == self.highest && id != 0 {
            self.handle.table().received_reset(id);
            return self.refuse(id, reset::PROTOCOL_ERROR).await;
        }
        if id < self.highest || id.is_multiple_of(2) {
            return Err(breach());
        }
        self.highest = id;
        let Some(arrivals) = self.arrivals.as_ref().filter(|_| self.handle.table().len() < STREAMS) else {
            return self.refuse(id, reset::REFUSED_STREAM).await;
        };
        let arrived = self.handle.arrive(id, headers);
        self.half_close(id, part);
        // Waiting for a session that takes its time is what bounds a flood of streams.
        let sent = tokio::select! {
            biased;
            sent = arrivals.send(arrived) => sent,
            () = self.hangup.wait() => return Err(End::Gone),
        };
        match sent {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendError(arrived)) => {
                arrived.refuse(reset::REFUSED_STREAM).await;
                self.count_refusal()
            }
        }
    }

    fn half_close(&self, id: u32, part: Part) {
        if part == Part::Last {
            self.handle.table().received_last(id);
        }
    }

    fn inflate(&mut self, block: &[u8]) -> Result<std::collections::BTreeMap<String, String>, End> {
        self.inflater.block(block).map_err(|_malformed| breach())
    }

    async fn refuse(&mut self, id: u32, code: u32) -> Result<(), End> {
        self.handle.say(Outgoing::Refuse(id, code)).await;
        self.count_refusal()
    }

    fn count_refusal(&mut self) -> Result<(), End> {
        self.refusals += 1;
        if self.refusals > REFUSALS { Err(breach()) } else { Ok(()) }
    }
}

fn breach() -> End {
    End::Farewell(GOAWAY_PROTOCOL_ERROR)
}

/// The writing half.
struct Encoder {
    /// Made for the first stream: it is large.
    deflater: Option<Deflater>,
    last_good: u32,
}

impl Encode for Encoder {
    fn outgoing(&mut self, outgoing: Outgoing, buffer: &mut BytesMut) {
        match outgoing {
            Outgoing::Accept(id) => {
                self.last_good = self.last_good.max(id);
                let block = self.deflater.get_or_insert_with(Deflater::new).block(&[]);
                Control::SynReply { id, part: Part::Middle, block }.put(buffer);
            }
            Outgoing::Piece(id, bytes) => {
                put_content_head(id, Part::Middle, bytes.len(), buffer);
                buffer.extend_from_slice(&bytes);
            }
            Outgoing::Refuse(id, status) => Control::RstStream { id, status }.put(buffer),
            Outgoing::Pong(number) => {
                let number = number[..].try_into().map_or(0, u32::from_be_bytes);
                Control::Ping(number).put(buffer);
            }
            // The ends of its streams tell the client; it closes the connection when it has read them.
            Outgoing::Over => {}
        }
    }

    fn mark(&mut self, mark: Mark, buffer: &mut BytesMut) {
        match mark {
            Mark::Last(id) => put_content_head(id, Part::Last, 0, buffer),
            Mark::Reset(id, status) => Control::RstStream { id, status }.put(buffer),
            Mark::Credit(id, delta) => Control::WindowUpdate { id, delta }.put(buffer),
            // Pings of a server have even numbers.
            Mark::Probe => Control::Ping(2).put(buffer),
        }
    }

    fn farewell(&mut self, status: u32, buffer: &mut BytesMut) {
        Control::GoAway { last_good: self.last_good, status }.put(buffer);
    }
}

//! The server's side of a connection: messages in, messages out, and the channels in them.
//!
//! Messages are passed on in pieces, so that their size does not matter.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader};

use super::frame::{CONTROL_LIMIT, Head, Opcode, apply_mask, close};
use crate::streaming::mux::{
    Encode, End, Handle, Hangup, Limits, Mark, Outgoing, PIECE, Part, Sending, Stream, deliver, drive,
};

/// The channel whose messages close other channels, in `v5.channel.k8s.io`.
const CLOSING: u8 = 255;

/// How streams lie in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The first byte of a binary message is its channel.
    Binary,
    /// Like that, and a message on channel 255 half-closes the channel that it names.
    BinaryWithClose,
    /// The first character of a text message is its channel as a digit, the rest is base64.
    Base64,
    /// The binary messages are one stream, number 0.
    Tunnel,
}

/// Runs a connection with channels from 0 to below `channels` until its client is gone. `session` gets their streams in
/// that order and ends by [`Handle::finish`].
pub async fn serve<R, W, S>(
    (read, write): (R, W),
    format: Format,
    (hangup, limits): (Hangup, Limits),
    channels: u32,
    session: impl FnOnce(Vec<Stream>, Handle) -> S,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    S: Future<Output = ()>,
{
    let (handle, queue) = Handle::new();
    let streams = (0..channels).map(|channel| handle.open(channel)).collect();
    let table = handle.table().clone();
    let receiver = Receiver {
        read: BufReader::with_capacity(PIECE, read),
        hangup,
        limits: limits.clone(),
        handle: handle.clone(),
        format,
        message: None,
    };
    let sending = Sending::new(write, Encoder { format, closed: false }, queue);
    tokio::join!(drive(&table, &limits, receiver.run(), sending), session(streams, handle));
}

/// The reading half.
struct Receiver<R> {
    read: BufReader<R>,
    hangup: Hangup,
    limits: Limits,
    handle: Handle,
    format: Format,
    message: Option<Message>,
}

/// The message that is being read.
struct Message {
    /// Known after the first byte.
    channel: Option<u8>,
    /// Characters that do not yet make whole bytes.
    rest: Vec<u8>,
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
        let mut first = [0; 2];
        self.read.read_exact(&mut first).await?;
        let mut rest = [0; 12];
        let rest = &mut rest[..Head::rest(first)];
        self.read.read_exact(rest).await?;
        let head = Head::parse(first, rest).ok_or_else(breach)?;
        let mask = head.mask.ok_or_else(breach)?;
        match head.opcode {
            Opcode::Close | Opcode::Ping | Opcode::Pong => self.control(head, mask).await,
            Opcode::Text | Opcode::Binary | Opcode::Continuation => self.content(head, mask).await,
        }
    }

    async fn control(&mut self, head: Head, mask: [u8; 4]) -> Result<(), End> {
        let mut payload = [0; CONTROL_LIMIT as usize];
        let payload = &mut payload[..head.length as usize];
        self.read.read_exact(payload).await?;
        apply_mask(mask, 0, payload);
        match head.opcode {
            Opcode::Close => return Err(End::Farewell(u32::from(close::NORMAL))),
            Opcode::Ping => self.handle.say(Outgoing::Pong(Bytes::copy_from_slice(payload))).await,
            _pong => {}
        }
        Ok(())
    }

    async fn content(&mut self, head: Head, mask: [u8; 4]) -> Result<(), End> {
        let begins = head.opcode != Opcode::Continuation;
        let text = self.format == Format::Base64;
        if begins == self.message.is_some() || begins && (head.opcode == Opcode::Text) != text {
            return Err(breach());
        }
        let mut message = self.message.take().unwrap_or_else(|| Message::new(self.format));
        let mut offset = 0;
        while offset < head.length {
            let wanted = (head.length - offset).min(PIECE as u64);
            let mut piece = BytesMut::with_capacity(wanted as usize);
            if (&mut self.read).take(wanted).read_buf(&mut piece).await? == 0 {
                return Err(End::Gone);
            }
            apply_mask(mask, offset, &mut piece);
            offset += piece.len() as u64;
            self.limits.touch();
            let part = Part::from(head.last && offset == head.length);
            self.piece(&mut message, piece, part).await?;
        }
        if !head.last {
            self.message = Some(message);
        } else if !message.rest.is_empty() {
            return Err(breach());
        }
        Ok(())
    }

    /// Passes on a piece of a message.
    async fn piece(&mut self, message: &mut Message, mut piece: BytesMut, part: Part) -> Result<(), End> {
        let channel = match message.channel {
            Some(channel) => channel,
            None => {
                let first = piece.split_to(1)[0];
                let channel = if self.format == Format::Base64 { first.wrapping_sub(b'0') } else { first };
                *message.channel.insert(channel)
            }
        };
        let table = self.handle.table();
        if channel == CLOSING && self.format == Format::BinaryWithClose {
            piece.iter().for_each(|channel| table.received_last(u32::from(*channel)));
            return Ok(());
        }
        let bytes = match self.format {
            Format::Base64 => message.decode(&piece, part).ok_or_else(breach)?,
            Format::Binary | Format::BinaryWithClose | Format::Tunnel => piece.freeze(),
        };
        deliver(table, &self.hangup, u32::from(channel), bytes).await
    }
}

impl Message {
    fn new(format: Format) -> Self {
        let channel = if format == Format::Tunnel { Some(0) } else { None };
        Self { channel, rest: Vec::new() }
    }

    /// Decodes groups of four characters; what is left of them waits for the next piece.
    fn decode(&mut self, piece: &[u8], part: Part) -> Option<Bytes> {
        self.rest.extend(piece);
        let whole = if part == Part::Last { self.rest.len() } else { self.rest.len() / 4 * 4 };
        let bytes = STANDARD.decode(&self.rest[..whole]).ok()?;
        self.rest.drain(..whole);
        Some(bytes.into())
    }
}

fn breach() -> End {
    End::Farewell(u32::from(close::PROTOCOL_ERROR))
}

/// The writing half.
struct Encoder {
    format: Format,
    /// Nothing follows a close frame.
    closed: bool,
}

impl Encoder {
    fn put(&self, opcode: Opcode, parts: [&[u8]; 2], buffer: &mut BytesMut) {
        if !self.closed {
            let length = parts[0].len() + parts[1].len();
            Head { opcode, last: true, mask: None, length: length as u64 }.put(buffer);
            parts.into_iter().for_each(|part| buffer.put_slice(part));
        }
    }
}

impl Encode for Encoder {
    fn outgoing(&mut self, outgoing: Outgoing, buffer: &mut BytesMut) {
        match outgoing {
            Outgoing::Piece(channel, bytes) => match self.format {
                Format::Tunnel => self.put(Opcode::Binary, [&[], &bytes], buffer),
                Format::Base64 => {
                    let channel = [b'0' + channel as u8];
                    self.put(Opcode::Text, [&channel, STANDARD.encode(&bytes).as_bytes()], buffer);
                }
                Format::Binary | Format::BinaryWithClose => {
                    self.put(Opcode::Binary, [&[channel as u8], &bytes], buffer);
                }
            },
            Outgoing::Pong(payload) => self.put(Opcode::Pong, [&payload, &[]], buffer),
            Outgoing::Over => self.farewell(u32::from(close::NORMAL), buffer),
            // Channels are neither accepted nor refused.
            Outgoing::Accept(_) | Outgoing::Refuse(..) => {}
        }
    }

    fn mark(&mut self, mark: Mark, buffer: &mut BytesMut) {
        match mark {
            Mark::Probe => self.put(Opcode::Ping, [&[], &[]], buffer),
            // Clients do not know of the end of one channel: the end of the session is theirs.
            Mark::Last(_) | Mark::Reset(..) | Mark::Credit(..) => {}
        }
    }

    fn farewell(&mut self, code: u32, buffer: &mut BytesMut) {
        self.put(Opcode::Close, [&(code as u16).to_be_bytes(), &[]], buffer);
        self.closed = true;
    }
}

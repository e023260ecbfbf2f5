//! The byte streams of one connection, whatever protocol frames them.
//!
//! It owns the table of streams, their ends for the session, and the loop that writes what they say. It must not know
//! how a frame looks, nor what a stream is for.
//!
//! Data waits in queues of fixed size and pushes back to whoever makes it; the ends of streams are marks in the table,
//! so that setting one never waits:
//!
//! ```text
//! reader of frames ──pipe──▶ Reader        Writer ──queue──▶ writer of frames
//!                                  marks: end, reset, credit ──▶
//! ```

mod drive;
mod ends;
mod hangup;
mod part;
mod table;

use bytes::{Bytes, BytesMut};

pub use drive::{Limits, Sending, deliver, drive};
pub use ends::{Arrived, Handle, Reader, Stream, Writer};
pub use hangup::Hangup;
pub use part::Part;
pub use table::{Mark, Overflow};

/// Largest piece of a stream in one frame, bytes.
pub const PIECE: usize = 32 << 10;
/// What may wait to be written, in pieces.
pub const QUEUE: usize = 4;

/// What a connection is told to write, in order.
#[derive(Debug)]
pub enum Outgoing {
    /// The stream is accepted.
    Accept(u32),
    /// A part of a stream.
    Piece(u32, Bytes),
    /// The stream is refused or ends, with the protocol's reason.
    Refuse(u32, u32),
    /// Answer to a ping.
    Pong(Bytes),
    /// The session is over.
    Over,
}

/// How a protocol writes.
pub trait Encode {
    /// Appends what says `outgoing`.
    fn outgoing(&mut self, outgoing: Outgoing, buffer: &mut BytesMut);

    /// Appends what says `mark`.
    fn mark(&mut self, mark: Mark, buffer: &mut BytesMut);

    /// Appends the last words of a connection that ends for `code`.
    fn farewell(&mut self, code: u32, buffer: &mut BytesMut);
}

/// How the reading of a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client is gone.
    Gone,
    /// Something is to be said before the connection is closed: the protocol's code.
    Farewell(u32),
}

impl From<std::io::Error> for End {
    fn from(_error: std::io::Error) -> Self {
        Self::Gone
    }
}

//! One daemon's connection: frames in, and a bounded queue of frames out. Never blocks; a daemon that does not read
//! loses its connection, not the monitor's time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::poll::{Interest, Token};
use super::wire::{Frame, FrameReader, Outgoing};

/// Bytes that may wait for a daemon that does not read.
const OUTBOX: usize = 8 << 20;

/// Who asked, so that the answer finds its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    /// The connection.
    pub connection: Token,
    /// The call's number on it.
    pub number: u64,
}

/// Whether the other side has said which protocol it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// Not yet: it may neither call nor hear events.
    Awaited,
    /// It has.
    Received,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    reader: FrameReader,
    outbox: VecDeque<Outgoing>,
    /// Whether calls are served.
    pub greeting: Greeting,
}

impl Connection {
    /// Takes a socket.
    pub fn new(socket: UnixStream, greeting: Greeting) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, reader: FrameReader::default(), outbox: VecDeque::new(), greeting })
    }

    /// For registrations.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads once and gives the whole frames. An error, the end of the stream too, comes after the frames before it.
    pub fn receive(&mut self) -> (Vec<Frame>, io::Result<()>) {
        let mut frames = Vec::new();
        let ended = match self.reader.receive(&self.socket) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        };
        loop {
            match self.reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, ended),
                Err(error) => return (frames, Err(error)),
            }
        }
    }

    /// Queues a frame and sends what the socket takes. An error ends the connection.
    pub fn send(&mut self, frame: Outgoing) -> io::Result<()> {
        let queued: usize = self.outbox.iter().map(Outgoing::remaining).sum();
        if queued > 0 && queued + frame.remaining() > OUTBOX {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the other side does not read"));
        }
        self.outbox.push_back(frame);
        self.flush()
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(frame) = self.outbox.front_mut() {
            match frame.send(&self.socket) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What there is to wait for.
    pub fn interest(&self) -> Interest {
        if self.outbox.is_empty() { Interest::Read } else { Interest::ReadWrite }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_does_not_read_is_given_up() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(near, Greeting::Received).unwrap();
        let body = "x".repeat(1 << 20);
        let mut sent = 0;
        while connection.send(Outgoing::new(&body, vec![]).unwrap()).is_ok() {
            sent += body.len();
            assert!(sent <= 2 * OUTBOX);
        }
        assert!(sent >= OUTBOX / 2);
    }
}

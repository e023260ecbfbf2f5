//! One client that gets copies of a container's output, each stream through a socket of its own.
//!
//! A client never makes anybody wait, and nothing is kept for it here: the daemon gives its sockets a large buffer,
//! and a client that leaves that full is detached. What it was sent until then stays readable.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::SendFlags;

use super::log::StreamName;
use super::poll::Token;

/// A client.
#[derive(Debug)]
pub struct Attachment {
    /// Chosen by the daemon.
    pub id: String,
    /// Where its copies go. Without any it has ended.
    pub sinks: Vec<Sink>,
    /// Whether it reads.
    pub keeping: Keeping,
}

/// Whether a client keeps up with the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// It has room for more.
    Up,
    /// One of its sockets was full: it is to be detached.
    Lags,
}

/// The way of one stream to a client.
#[derive(Debug)]
pub struct Sink {
    /// Which stream.
    pub stream: StreamName,
    /// Its registration, which tells that the client is gone.
    pub token: Token,
    socket: OwnedFd,
}

impl Attachment {
    /// Sends a copy of what a stream brought.
    pub fn feed(&mut self, stream: StreamName, bytes: &[u8]) {
        if self.sinks.iter().any(|sink| sink.stream == stream && !sink.takes(bytes)) {
            self.keeping = Keeping::Lags;
        }
    }
}

impl Sink {
    /// A registered socket.
    pub fn new(stream: StreamName, token: Token, socket: OwnedFd) -> Self {
        Self { stream, token, socket }
    }

    /// For registrations.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether all was sent, or the client is gone, which its registration tells.
    fn takes(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => bytes = &bytes[count..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return false,
                Err(_) => return true,
            }
        }
        true
    }
}

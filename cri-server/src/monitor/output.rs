//! One stream out of a container: the reading end of a pipe, or the master of a pseudo-terminal.
//! Reads never block; what was read goes to a line splitter and to attached clients.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::attachment::Attachment;
use super::clock::Stamp;
use super::log::{LineSplitter, LogFile, StreamName};
use super::poll::Token;

/// Bytes read at once; shared by all streams of the process.
pub type Scratch = [u8; 32 << 10];

/// What one read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pump {
    /// This many bytes; there may be more.
    Some(usize),
    /// Nothing for now.
    Empty,
    /// The end: every writer is gone.
    End,
}

/// A stream and where it goes.
#[derive(Debug)]
pub struct Output {
    fd: OwnedFd,
    splitter: LineSplitter,
    /// Its registration, once it is watched.
    pub token: Option<Token>,
}

impl Output {
    /// Takes the reading end.
    pub fn new(fd: OwnedFd, splitter: LineSplitter) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self { fd, splitter, token: None })
    }

    /// For registrations.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Which stream it is; a terminal's counts as standard output.
    pub fn stream(&self) -> StreamName {
        self.splitter.stream()
    }

    /// Reads once into `scratch`, logs it, and sends copies to those attached.
    pub fn pump(&mut self, scratch: &mut Scratch, log: &mut LogFile, attached: &mut [Attachment]) -> Pump {
        let found = read_once(&self.fd, scratch);
        if let Pump::Some(count) = found {
            self.splitter.push(&scratch[..count], Stamp::now(), log);
            attached.iter_mut().for_each(|client| client.feed(self.splitter.stream(), &scratch[..count]));
        }
        found
    }

    /// Pumps all that was written before now: no more than the pipe can hold, so a writer that goes on does not
    /// keep this from ending.
    pub fn drain(&mut self, scratch: &mut Scratch, log: &mut LogFile, attached: &mut [Attachment]) -> Pump {
        let mut room = rustix::pipe::fcntl_getpipe_size(&self.fd).unwrap_or(128 << 10);
        loop {
            match self.pump(scratch, log, attached) {
                Pump::Some(count) if count < room => room -= count,
                other => return other,
            }
        }
    }

    /// Ends the last line.
    pub fn finish(&mut self, log: &mut LogFile) {
        self.splitter.finish(Stamp::now(), log);
    }
}

/// Makes reads of `fd` return instead of wait.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}

/// One read. The master of a terminal says EIO where a pipe says 0.
pub fn read_once(fd: impl AsFd, scratch: &mut [u8]) -> Pump {
    loop {
        return match rustix::io::read(&fd, &mut *scratch) {
            Ok(0) => Pump::End,
            Ok(count) => Pump::Some(count),
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => Pump::Empty,
            Err(_) => Pump::End,
        };
    }
}

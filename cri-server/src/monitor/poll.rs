//! epoll with a table of what each descriptor stands for.
//!
//! Tokens are never used twice, so an event that was fetched before its source was removed finds nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

/// Name of one registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the end.
    Read,
    /// That, or room to write.
    ReadWrite,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Self::Read => epoll::EventFlags::IN,
            Self::ReadWrite => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        }
    }
}

/// An epoll instance whose registrations carry an `S`.
#[derive(Debug)]
pub struct Poll<S> {
    epoll: OwnedFd,
    sources: BTreeMap<Token, S>,
    next: u64,
}

impl<S: Clone> Poll<S> {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, sources: BTreeMap::new(), next: 0 })
    }

    /// Watches `fd` for input.
    pub fn add(&mut self, fd: impl AsFd, source: S) -> io::Result<Token> {
        let token = Token(self.next);
        self.next += 1;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.0), Interest::Read.flags())?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Changes what is waited for.
    pub fn modify(&self, token: Token, fd: impl AsFd, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token.0), interest.flags())?)
    }

    /// Ends the watch. Needed before `fd` is closed: a forked child may hold the same open file.
    pub fn remove(&mut self, token: Token, fd: impl AsFd) {
        if self.sources.remove(&token).is_some() {
            let _gone_already = epoll::delete(&self.epoll, fd);
        }
    }

    /// Waits for events, at most `timeout`, and names their sources.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<(Token, S)>> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut events = Vec::with_capacity(32);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let named = |event: &epoll::Event| {
            let token = Token(event.data.u64());
            self.sources.get(&token).map(|source| (token, source.clone()))
        };
        Ok(events.iter().filter_map(named).collect())
    }
}

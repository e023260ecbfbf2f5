//! Links that go: at once where somebody waits for the name, without the kernel's waiting that follows.

use std::time::{Duration, Instant};

use super::background;
use super::error::NetError;
use super::link::{self, Link};
use super::socket::Socket;

/// Longest wait for the child.
const UNTIL_GONE: Duration = Duration::from_millis(500);
/// Bounds of the pause between looks.
const SHORTEST: Duration = Duration::from_micros(30);
const LONGEST: Duration = Duration::from_millis(2);

/// Removes a link that may be gone already.
///
/// # Errors
/// [`NetError`].
pub fn remove(socket: &mut Socket, link: &Link) -> Result<(), NetError> {
    match link::delete(socket, link) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

/// A link on its way out of the calling thread's namespace, by a child process, which also does the kernel's waiting
/// that follows.
#[derive(Debug)]
pub struct Departure {
    socket: Socket,
    link: Link,
    start: Instant,
}

/// Starts a removal. The child has what this process has open, and keeps it open until the kernel is done.
///
/// # Errors
/// [`NetError`].
pub fn start(socket: Socket, link: &Link) -> Result<Departure, NetError> {
    let start = Instant::now();
    background::send(Socket::route()?, &link::deletion(link))?;
    Ok(Departure { socket, link: link.clone(), start })
}

impl Departure {
    /// Returns when the link's name is free.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn end(mut self) -> Result<(), NetError> {
        loop {
            if link::is_gone(&mut self.socket, &self.link)? {
                return Ok(());
            }
            if self.start.elapsed() >= UNTIL_GONE {
                return remove(&mut self.socket, &self.link);
            }
            // Looks are cheap; so the last pause is short beside the whole wait.
            std::thread::sleep((self.start.elapsed() / 4).clamp(SHORTEST, LONGEST));
        }
    }
}

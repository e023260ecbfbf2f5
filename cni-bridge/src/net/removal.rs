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

/// Removes a link of the calling thread's namespace and returns when its name is free; what the kernel then waits
/// for, a child process does, which keeps `kept` open until then.
///
/// # Errors
/// [`NetError`].
pub fn remove_quickly<T>(mut socket: Socket, link: &Link, kept: T) -> Result<(), NetError> {
    background::send(Socket::route()?, &link::deletion(link), kept)?;
    let start = Instant::now();
    while start.elapsed() < UNTIL_GONE {
        // Looks are cheap; so the last pause is short beside the whole wait.
        std::thread::sleep((start.elapsed() / 4).clamp(SHORTEST, LONGEST));
        if link::is_gone(&mut socket, link)? {
            return Ok(());
        }
    }
    remove(&mut socket, link)
}

//! Links that go: at once where somebody waits for the name, without the kernel's waiting that follows.

use std::time::{Duration, Instant};

use super::background;
use super::error::NetError;
use super::link::{self, Link};
use super::socket::Socket;

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
    let mut own = Socket::route()?;
    background::leave(|| {
        let _ = link::delete(&mut own, link);
        kept
    });
    let deadline = Instant::now() + Duration::from_millis(500);
    let same = |found: &Link| found.index == link.index && found.alias == link.alias;
    let mut pause = Duration::from_micros(100);
    while Instant::now() < deadline {
        std::thread::sleep(pause);
        if !link::get(&mut socket, &link.name)?.as_ref().is_some_and(same) {
            return Ok(());
        }
        pause = (pause * 2).min(Duration::from_millis(4));
    }
    remove(&mut socket, link)
}

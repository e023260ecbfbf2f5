//! Notices that a client is gone while nothing is read from it.
//!
//! A stream that nobody reads stops the reading of its whole connection; the end of the connection stands behind the
//! bytes that are not read then, so it is asked of the kernel.

use std::io::{ErrorKind, Result};
use std::os::fd::AsFd;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// How the end of a connection is noticed beside reading.
pub enum Hangup {
    /// A second descriptor of the client's socket.
    Socket(TcpStream),
    /// Another connection, which carries this one.
    Carrier(CancellationToken),
}

impl Hangup {
    /// Watches a socket beside its owner.
    pub fn of(socket: &TcpStream) -> Result<Self> {
        let second = std::net::TcpStream::from(socket.as_fd().try_clone_to_owned()?);
        Ok(Self::Socket(TcpStream::from_std(second)?))
    }

    /// Done when the client has closed its end, whatever it sent before.
    pub async fn wait(&self) {
        match self {
            Self::Carrier(gone) => gone.cancelled().await,
            Self::Socket(socket) => loop {
                match socket.ready(Interest::READABLE).await {
                    Ok(ready) if !ready.is_read_closed() => {}
                    _closed => return,
                }
                // What can be read is left for the owner; here the next change is waited for.
                let _wait = socket.try_io(Interest::READABLE, || Err::<(), _>(ErrorKind::WouldBlock.into()));
            },
        }
    }
}

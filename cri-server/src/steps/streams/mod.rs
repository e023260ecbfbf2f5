//! The node, as streams see it: commands, containers and ports of pods at the other end of a client's streams.
//! Knows pipes, terminals and sockets; must not know the protocols that clients speak.

mod attach;
mod copy;
mod exec;

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::cri_config::invalid;
use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::host::netns;
use crate::store::sandbox::Sandbox;
use crate::streaming::session::{Attach, Exec, Streams, Target, Wiring};

/// The node behind the streaming server.
pub struct Node {
    daemon: Arc<Daemon>,
}

impl Node {
    /// The node of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }
}

impl Target for Node {
    async fn exec(&self, session: Exec, streams: Streams) -> Result<i32, Error> {
        let gone = streams.gone.clone();
        // Dropping the command kills it.
        while_connected(gone, exec::exec(&self.daemon, session, streams)).await
    }

    async fn attach(&self, session: Attach, streams: Streams) -> Result<(), Error> {
        let gone = streams.gone.clone();
        while_connected(gone, attach::attach(&self.daemon, session, streams)).await
    }

    async fn connect(&self, pod_id: &str, port: u16) -> Result<TcpStream, Error> {
        let sandbox = ready(&self.daemon, pod_id)?;
        let doing = format!("connect to port {port} of pod sandbox {}", sandbox.id());
        let pin = sandbox.fixed.pins.net.clone();
        let sockets = blocking(move || netns::tcp_sockets(pin.as_deref())).await?;
        match sockets {
            Ok(sockets) => netns::connect_loopback(sockets, port).await.map_err(Error::host(doing)),
            Err(error) => Err(Error::host(doing)(error)),
        }
    }
}

/// Gives a session up when its client is gone.
async fn while_connected<T>(
    gone: CancellationToken,
    session: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        biased;
        ended = session => ended,
        () = gone.cancelled() => {
            Err(Error::host("serve a stream")(std::io::ErrorKind::ConnectionReset.into()))
        }
    }
}

/// The pod sandbox of a request, which has to be ready.
pub fn ready(daemon: &Daemon, id: &str) -> Result<Arc<Sandbox>, Error> {
    let sandbox = daemon.sandbox(id)?;
    if sandbox.state().is_ready() {
        return Ok(sandbox);
    }
    Err(Error::FailedPrecondition {
        kind: "pod sandbox",
        id: sandbox.id().to_string(),
        reason: "is not ready".into(),
    })
}

/// Refuses what cannot be wired: nothing at all, or standard error beside a terminal.
pub fn wiring(wiring: Wiring) -> Result<Wiring, Error> {
    if wiring.tty && wiring.stderr {
        return Err(invalid("stderr", "expected false with tty: a terminal has one output, stdout"));
    }
    if !(wiring.stdin || wiring.stdout || wiring.stderr) {
        return Err(invalid("stdin, stdout, stderr", "expected at least one to be true"));
    }
    Ok(wiring)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_process_has_is_wired() {
        let check = |tty, stdin, stdout, stderr, expect| {
            assert_eq!(wiring(Wiring { tty, stdin, stdout, stderr }).is_ok(), expect);
        };
        check(false, false, false, false, false);
        check(true, false, false, false, false);
        check(true, true, true, true, false);
        check(true, false, true, false, true);
        check(false, true, false, false, true);
        check(false, false, false, true, true);
        check(false, true, true, true, true);
    }
}

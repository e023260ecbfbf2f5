//! A client at the streams of a container's main process. The monitor sends it copies of the output through sockets
//! with a large buffer; a client that leaves them full is detached, so that it holds up neither the container nor
//! its log.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::copy;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::monitor::{Attach as Joining, Attached, Monitor};
use crate::model::id::ContainerId;
use crate::monitor::protocol::Event;
use crate::steps::command;
use crate::store::container::Container;
use crate::streaming::session::{Attach, Streams};

/// Bytes that a client may lag behind, for each stream: less where the kernel allows less.
const BACKLOG: usize = 4 << 20;

/// Joins a container until it has ended and its output is told. Dropping the future only leaves it.
pub async fn attach(daemon: &Arc<Daemon>, session: Attach, streams: Streams) -> Result<(), Error> {
    let (container, monitor) = command::running(daemon, &session.container_id)?;
    let doing = || format!("make the streams of an attach to container {}", container.id);
    let Streams { stdin, stdout, stderr, resize, .. } = streams;
    let (from_stdout, far_stdout) = socket().map_err(Error::host(doing()))?;
    let (from_stderr, far_stderr) = socket().map_err(Error::host(doing()))?;
    let attach_id = ContainerId::generate().to_string();
    let mut events = monitor.events();
    let joining = Joining {
        attach_id: attach_id.clone(),
        container_id: container.id.to_string(),
        terminal: container.record().config.tty,
        stdin: stdin.is_some(),
        stdout: stdout.is_some().then_some(far_stdout),
        stderr: stderr.is_some().then_some(far_stderr),
    };
    let (input, terminal) = match monitor.attach_to(joining).await? {
        Attached::Pipes(input) => (input, None),
        Attached::Terminal { master, writable: false } => (None, Some(master)),
        Attached::Terminal { master, writable: true } => {
            (Some(master.try_clone().map_err(Error::host(doing()))?), Some(master))
        }
    };
    let input = input.map(copy::sender).transpose().map_err(Error::host(doing()))?;
    // The monitor decides when the output has ended.
    let never = watch::Sender::new(None);
    let has_output = stdout.is_some() || stderr.is_some();
    let output_ended = watch::Sender::new(false);
    let output = async {
        tokio::join!(
            copy::output(from_stdout, stdout, never.subscribe()),
            copy::output(from_stderr, stderr, never.subscribe()),
        );
        output_ended.send_replace(has_output);
    };
    let session = async {
        let end = end(&container, (&monitor, &mut events), &attach_id, output_ended.subscribe());
        tokio::join!(end, output)
    };
    tokio::select! {
        (ended, ()) = session => ended,
        never = copy::input(stdin, input) => match never {},
        never = copy::resize(resize, terminal) => match never {},
    }
}

/// Waits for the end of the container, or for the monitor to have given up on the client. Where events were missed, the
/// latter is seen by the end of the output, which the monitor closes then.
async fn end(
    container: &Container,
    (monitor, events): (&Monitor, &mut broadcast::Receiver<Event>),
    attach_id: &str,
    mut output_ended: watch::Receiver<bool>,
) -> Result<(), Error> {
    let fell_behind = || Err(Error::FellBehind { id: container.id.to_string(), mebibytes: BACKLOG >> 20 });
    let mut state = container.watch();
    let mut missed = false;
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            _exited = state.wait_for(|state| state.is_exited()) => return Ok(()),
            () = monitor.gone() => return Ok(()),
            _closed = output_ended.wait_for(|ended| *ended), if missed => return fell_behind(),
        };
        match event {
            Ok(Event::Detached { attach_id: detached }) if detached == attach_id => {
                return fell_behind();
            }
            Err(RecvError::Closed) => return Ok(()),
            Err(RecvError::Lagged(_)) => missed = true,
            Ok(_) => {}
        }
    }
}

/// The end that is read here, and the one that the monitor writes to.
fn socket() -> std::io::Result<(UnixStream, OwnedFd)> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    near.set_nonblocking(true)?;
    let sized = rustix::net::sockopt::set_socket_send_buffer_size_force(&far, BACKLOG)
        .or_else(|_| rustix::net::sockopt::set_socket_send_buffer_size(&far, BACKLOG));
    if let Err(error) = sized {
        tracing::debug!(%error, "the buffer of an attached client stays small");
    }
    Ok((UnixStream::from_std(near)?, far.into()))
}

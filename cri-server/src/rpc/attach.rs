//! Attach: which container a stream is to join. The stream itself follows under the address that the client gets.

use proto::cri::AttachRequest;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::command;
use crate::steps::cri_config::invalid;
use crate::steps::streams::wiring;
use crate::streaming::Request;
use crate::streaming::session::{Attach, Wiring};

/// Checks the request; the container has to run.
pub fn attach(daemon: &Daemon, request: AttachRequest) -> Result<Request, Error> {
    let AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
    let wiring = wiring(Wiring { tty, stdin, stdout, stderr })?;
    let (container, _) = command::running(daemon, &container_id)?;
    // The other way round does no harm: all that a terminal shows is standard output.
    if tty && !container.record().config.tty {
        let reason = format!("expected false, container {} has no terminal", container.id);
        return Err(invalid("tty", reason));
    }
    Ok(Request::Attach(Attach { container_id: container.id.to_string(), wiring }))
}

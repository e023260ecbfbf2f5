//! Exec: what a stream is to run. The stream itself follows under the address that the client gets.

use proto::cri::ExecRequest;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::command;
use crate::steps::cri_config::missing;
use crate::steps::streams::wiring;
use crate::streaming::Request;
use crate::streaming::session::{Exec, Wiring};

/// Checks the request; the container has to run.
pub fn exec(daemon: &Daemon, request: ExecRequest) -> Result<Request, Error> {
    let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    if cmd.is_empty() {
        return Err(missing("cmd"));
    }
    let wiring = wiring(Wiring { tty, stdin, stdout, stderr })?;
    let (container, _) = command::running(daemon, &container_id)?;
    Ok(Request::Exec(Exec { container_id: container.id.to_string(), command: cmd, wiring }))
}

//! PortForward: which pod a stream is to reach. The stream itself follows under the address that the client gets and
//! names its ports anew.

use proto::cri::PortForwardRequest;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::cri_config::invalid;
use crate::steps::streams;
use crate::streaming::Request;

/// Most ports of a request: each has two channels of one byte over WebSocket.
const PORTS: usize = 127;

/// Checks the request. The pod has to be ready.
pub fn port_forward(daemon: &Daemon, request: PortForwardRequest) -> Result<Request, Error> {
    let mut ports = Vec::with_capacity(request.port.len());
    for port in request.port {
        let number = u16::try_from(port).ok().filter(|number| *number != 0);
        let expected = || invalid("port", format!("expected 1 to {}, got {port}", u16::MAX));
        ports.push(number.ok_or_else(expected)?);
    }
    if ports.len() > PORTS {
        return Err(invalid("port", format!("expected {PORTS} ports at most, got {}", ports.len())));
    }
    let pod_id = streams::ready(daemon, &request.pod_sandbox_id)?.id().to_string();
    Ok(Request::PortForward { pod_id, ports })
}

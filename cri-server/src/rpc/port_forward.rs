//! PortForward: which pod a stream is to reach. The stream itself follows under the address that the client gets and
//! names its ports anew.

use proto::cri::PortForwardRequest;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::cri_config::invalid;
use crate::steps::streams;

/// Checks the request, and gives the pod sandbox's full id. The pod has to be ready.
pub fn port_forward(daemon: &Daemon, request: &PortForwardRequest) -> Result<String, Error> {
    for port in &request.port {
        if !(1..=i32::from(u16::MAX)).contains(port) {
            return Err(invalid("port", format!("expected 1 to {}, got {port}", u16::MAX)));
        }
    }
    Ok(streams::ready(daemon, &request.pod_sandbox_id)?.id().to_string())
}

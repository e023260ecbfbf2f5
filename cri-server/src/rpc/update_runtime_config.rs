//! UpdateRuntimeConfig.
//!
//! The pod CIDR is kept and shown by a verbose Status. No network configuration is made of it: the ones in the
//! configured directory are whole, and who runs an overlay has an agent that knows its subnet.

use std::net::IpAddr;
use std::sync::PoisonError;

use proto::cri::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::steps::cri_config::invalid;

/// Takes the node's pod CIDRs: none, one, or one of each family, with a comma in between.
pub fn update_runtime_config(
    daemon: &Daemon,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Error> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    let Some(cidr) = network.map(|network| network.pod_cidr).filter(|cidr| !cidr.is_empty()) else {
        return Ok(UpdateRuntimeConfigResponse {});
    };
    if let Some(bad) = cidr.split(',').find(|part| !is_cidr(part.trim())) {
        let reason = format!("expected addresses such as 10.1.2.0/24, got {bad:?}");
        return Err(invalid("runtime_config.network_config.pod_cidr", reason));
    }
    *daemon.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner) = cidr;
    Ok(UpdateRuntimeConfigResponse {})
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let bits = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs() {
        let check = |text: &str, expect| assert_eq!(is_cidr(text), expect, "{text}");
        check("10.1.2.0/24", true);
        check("fd00::/64", true);
        check("10.1.2.0/33", false);
        check("10.1.2.0", false);
        check("x/8", false);
    }
}

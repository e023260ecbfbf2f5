//! Keys of the configuration that several plugins share.

use std::path::PathBuf;

use proto::cni::{CniError, IfName, Request};

use crate::ledger::STATE_DIR;
use crate::net::link::Mac;

/// Largest MTU of a link, in bytes.
const MAX_MTU: i64 = 65535;

/// `mtu`, in bytes; 0 means the kernel's default.
///
/// # Errors
/// [`proto::cni::ErrorCode::INVALID_NETWORK_CONFIG`], [`proto::cni::ErrorCode::DECODING_FAILURE`]; so for all here.
pub fn mtu(request: &Request) -> Result<Option<u32>, CniError> {
    let mtu = request.conf.top().number("mtu", 0, MAX_MTU)?.filter(|mtu| *mtu != 0);
    match mtu {
        Some(mtu) if mtu < 68 => Err(CniError::config("mtu", format!("{mtu} is not in 68 to {MAX_MTU}"))),
        other => Ok(other.and_then(|mtu| u32::try_from(mtu).ok())),
    }
}

/// The hardware address: from the capability, else from `args.cni`, else from CNI_ARGS.
pub fn mac(request: &Request) -> Result<Option<Mac>, CniError> {
    const WHAT: &str = "a unicast MAC address";
    for object in [request.conf.runtime_config()?, request.conf.cni_args()?].into_iter().flatten() {
        if let Some(mac) = object.parsed("mac", WHAT)? {
            return Ok(Some(mac));
        }
    }
    match request.args.get("MAC") {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| CniError::config("CNI_ARGS MAC", format!("{text:?} is not {WHAT}"))),
    }
}

/// An interface's name; absent is `None`, and so is the empty string.
pub fn interface(request: &Request, key: &str) -> Result<Option<String>, CniError> {
    match request.conf.top().string(key)?.filter(|name| !name.is_empty()) {
        None => Ok(None),
        Some(name) if name.parse::<IfName>().is_ok() => Ok(Some(name.to_owned())),
        Some(name) => Err(CniError::config(key, format!("{name:?} is not an interface name"))),
    }
}

/// Whether to masquerade. `ipMasqBackend` may name either of the reference's; the rules are those of nf_tables.
pub fn ip_masq(request: &Request) -> Result<bool, CniError> {
    let top = request.conf.top();
    match top.string("ipMasqBackend")? {
        None | Some("" | "iptables" | "nftables") => top.flag("ipMasq"),
        Some(other) => {
            Err(CniError::config("ipMasqBackend", format!("{other:?} is not iptables or nftables")))
        }
    }
}

/// [`state_dir`] for DEL, which a wrong one does not stop.
pub fn state_dir_or_default(request: &Request) -> PathBuf {
    state_dir(request).unwrap_or_else(|_| STATE_DIR.into())
}

/// Where the ledger of shared links is kept, and the locks.
pub fn state_dir(request: &Request) -> Result<PathBuf, CniError> {
    let dir = request.conf.top().string("stateDir")?.filter(|dir| !dir.is_empty());
    Ok(dir.unwrap_or(STATE_DIR).into())
}

//! The plugins: configuration in, kernel state and result out.

pub mod bandwidth;
pub mod bridge;
pub mod child;
mod claims;
mod connectivity;
pub mod firewall;
mod isolation;
pub(crate) mod keys;
pub mod loopback;
mod masquerade;
mod pod;
pub mod portmap;
mod predecessor;
pub mod ptp;
mod teardown;
pub mod tuning;
mod veth;

use std::path::Path;

use proto::cni::plugin::OwnNetns;
use proto::cni::{CniError, CniResult, ErrorCode, Plugin, Request};

use crate::ipam::fixed::Static;
use crate::ipam::host_local::HostLocal;
use crate::ledger::LedgerError;
use crate::net::NetError;
use crate::net::netns::{NetNs, NetNsError};
use crate::owner::Owner;
use crate::turn::Detached;

/// Every plugin in this program.
pub const ALL: &[&(dyn Plugin + Sync)] = &[
    &bandwidth::Bandwidth,
    &bridge::Bridge,
    &firewall::Firewall,
    &HostLocal,
    &child::IpVlan,
    &loopback::Loopback,
    &child::MacVlan,
    &portmap::PortMap,
    &ptp::Ptp,
    &Static,
    &tuning::Tuning,
    &child::Vlan,
];

/// The plugin with the reference's name `name`.
pub fn named(name: &str) -> Option<&'static (dyn Plugin + Sync)> {
    ALL.iter().copied().find(|plugin| plugin.name() == name)
}

/// Opens CNI_NETNS for ADD and CHECK, where it must be there and not be our own.
fn open_netns(request: &Request, path: &Path) -> Result<NetNs, CniError> {
    let netns = NetNs::open(path)?;
    if request.own_netns == OwnNetns::Refused && netns.is_own()? {
        let msg = format!("CNI_NETNS {} is the namespace that the plugin runs in", path.display());
        return Err(CniError::new(ErrorCode::INVALID_NETNS, msg));
    }
    Ok(netns)
}

/// The result of the plugins before.
fn prev_result(request: &Request) -> Result<CniResult, CniError> {
    let missing = || {
        let problem = format!("missing; {} must be chained after another plugin", request.conf.plugin);
        CniError::config("prevResult", problem)
    };
    request.conf.prev_result()?.ok_or_else(missing)
}

/// The attachment is coming: `repair` takes part in it again.
fn attaching(request: &Request, owner: &Owner) {
    mark(request, |detached| detached.unmark(owner));
}

/// The attachment is going: from here on `repair` makes nothing of it any more, whatever the runtime's record says.
fn detaching(request: &Request, owner: &Owner) {
    mark(request, |detached| detached.mark(owner));
}

/// Marks are for `repair` only: where none can be made, all else goes on.
fn mark(request: &Request, change: impl FnOnce(&Detached) -> Result<(), LedgerError>) {
    let base = keys::state_dir_or_default(request);
    let _ = Detached::lock(&base).and_then(|detached| change(&detached));
}

/// A failed CHECK.
fn damaged(what: impl Into<String>) -> CniError {
    CniError::new(ErrorCode::PLUGIN, what)
}

/// The first error of a teardown that ran all its steps, with the others in its details.
///
/// # Errors
/// The first of them.
pub fn collect(outcomes: impl IntoIterator<Item = Result<(), CniError>>) -> Result<(), CniError> {
    let mut errors = outcomes.into_iter().filter_map(Result::err);
    let Some(mut first) = errors.next() else { return Ok(()) };
    for error in errors {
        if !first.details.is_empty() {
            first.details.push_str("; ");
        }
        first.details.push_str(&error.to_string());
    }
    Err(first)
}

impl From<NetError> for CniError {
    fn from(error: NetError) -> Self {
        Self::from_error(ErrorCode::PLUGIN, &error)
    }
}

impl From<NetNsError> for CniError {
    fn from(error: NetNsError) -> Self {
        let bare = Self::from_error(ErrorCode::INVALID_NETNS, &error);
        Self { msg: format!("CNI_NETNS: {}", bare.msg), ..bare }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn teardown_reports_everything() {
        let fail = |msg: &str| Err(CniError::new(ErrorCode(100), msg));
        assert_eq!(collect([Ok(()), Ok(())]), Ok(()));
        let error = collect([fail("a"), Ok(()), fail("b"), fail("c")]).unwrap_err();
        assert_eq!(error.to_string(), "a: b; c");
    }

    #[test]
    fn each_cause_is_told_once() {
        let error = NetNs::open(Path::new("/absent")).unwrap_err();
        assert_eq!(CniError::from(error).to_string(), "CNI_NETNS: network namespace /absent does not exist");
        let error = crate::net::sysctl::get("absent").unwrap_err();
        let expect = "reading /proc/sys/net/absent: No such file or directory (os error 2)";
        assert_eq!(CniError::from(error).to_string(), expect);
    }
}

//! macvlan, ipvlan and vlan: an interface on top of a link of the host, which stays the host's.
//!
//! What an attachment shares with others (a VLAN made on demand, a parent that leads nowhere, a shim for the host) is
//! in the [`crate::ledger`] before it is made, and goes with its last user. The pod's own link is born in the pod's
//! namespace under a name that nobody else has, and gets its own together with the owner's tag.

mod attach;
mod check;
mod conf;
mod detach;
mod parent;
mod shim;

use std::path::Path;

use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::open_netns;
use crate::ipam;
use crate::ledger::Ledger;
use crate::net::socket::Socket;
use crate::owner::Owner;
use conf::ChildConf;

/// The macvlan plugin.
#[derive(Debug, Clone, Copy)]
pub struct MacVlan;

/// The ipvlan plugin.
#[derive(Debug, Clone, Copy)]
pub struct IpVlan;

/// The vlan plugin.
#[derive(Debug, Clone, Copy)]
pub struct Vlan;

/// Makes a plugin of one kind of link.
macro_rules! child {
    ($plugin:ty, $name:literal, $parse:path) => {
        impl Plugin for $plugin {
            fn name(&self) -> &'static str {
                $name
            }

            fn add(
                &self,
                request: &Request,
                attachment: &Attachment,
                netns: &Path,
            ) -> Result<CniResult, CniError> {
                attach::add(request, &$parse(request)?, attachment, &open_netns(request, netns)?)
            }

            fn del(
                &self,
                request: &Request,
                attachment: &Attachment,
                netns: Option<&Path>,
            ) -> Result<(), CniError> {
                detach::del(request, attachment, netns, $name)
            }

            fn check(
                &self,
                request: &Request,
                attachment: &Attachment,
                netns: &Path,
            ) -> Result<(), CniError> {
                check::check(request, &$parse(request)?, attachment, &open_netns(request, netns)?)
            }

            fn gc(&self, request: &Request) -> Result<(), CniError> {
                detach::gc(request, $name)
            }

            fn status(&self, request: &Request) -> Result<(), CniError> {
                status(request, &$parse(request)?)
            }
        }
    };
}

child!(MacVlan, "macvlan", conf::macvlan);
child!(IpVlan, "ipvlan", conf::ipvlan);
child!(Vlan, "vlan", conf::vlan);

/// Whether the parent could carry another link, and addresses could be had.
fn status(request: &Request, conf: &ChildConf) -> Result<(), CniError> {
    let mut host = Socket::route()?;
    if let Err(error) = parent::probe(&mut host, conf, &request.conf.name) {
        let of_network = |owner: &Owner| owner.parts().0 == request.conf.name.as_str();
        let cut_off = parent::is_unusable(&mut host, conf)?
            && Ledger::open(&conf.state_dir)?.owners()?.iter().any(of_network);
        let code = if cut_off { ErrorCode::LIMITED_CONNECTIVITY } else { ErrorCode::NOT_AVAILABLE };
        return Err(CniError { code, ..error });
    }
    if conf.has_ipam { ipam::status(request) } else { Ok(()) }
}

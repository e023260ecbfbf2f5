//! CHECK: is everything that ADD made still there and as it was.

use std::net::IpAddr;

use proto::cni::{Attachment, CniError, Request};

use super::conf::{ChildConf, Master};
use super::{parent, shim};
use crate::ipam;
use crate::net::link;
use crate::net::netns::NetNs;
use crate::net::socket::Socket;
use crate::plugin::{damaged, pod};

/// Verifies parent, link, addresses, routes, address reservations and shim.
///
/// # Errors
/// [`proto::cni::ErrorCode::PLUGIN`] with the first damage found.
pub fn check(
    request: &Request,
    conf: &ChildConf,
    attachment: &Attachment,
    netns: &NetNs,
) -> Result<(), CniError> {
    let result = pod::previous(request)?;
    let index = pod::interface_index(&result, attachment)?;
    pod::expect_sandbox(&result, index, netns)?;
    let mut host = Socket::route()?;
    let mut inside = netns.run(Socket::route)??;
    let link = pod::find(&mut inside, attachment.ifname.as_str())?;
    let socket = if matches!(conf.master, Master::InContainer(_)) { &mut inside } else { &mut host };
    let parent = match (&conf.master, link.lower) {
        // The default route may be the link's own by now.
        (Master::InContainer(None), Some(index)) => link::by_index(socket, index)?
            .ok_or_else(|| damaged(format!("the link below {} is missing", link.name)))?,
        _ => {
            let plan = parent::plan(socket, conf, &request.conf.name).map_err(|error| damaged(error.msg))?;
            pod::find(socket, &plan.name)?
        }
    };
    if !parent.up {
        return Err(damaged(format!("master: link {} is down", parent.name)));
    }
    if conf.promiscuous && !parent.promiscuous {
        return Err(damaged(format!("link {} does not receive every frame any more", parent.name)));
    }
    let kind = conf.kind.name();
    if link.kind != kind || !link.up {
        return Err(damaged(format!("{} is not a {kind} link that is up", link.name)));
    }
    if link.lower != Some(parent.index) {
        return Err(damaged(format!("{} is not on top of {}", link.name, parent.name)));
    }
    if link.detail != conf.kind.detail() {
        return Err(damaged(format!("the mode of {} differs from the configuration", link.name)));
    }
    pod::check(&mut inside, request, &link, (&result, index))?;
    if conf.has_ipam {
        ipam::check(request, attachment)?;
    }
    if conf.shim.is_empty() {
        return Ok(());
    }
    let pods: Vec<IpAddr> =
        pod::addresses_of(&result, index).into_iter().map(|address| address.addr()).collect();
    shim::check(&mut host, &shim::name(&request.conf.name, &parent.name), &conf.shim, &pods)
}

//! bridge: pods on a Linux bridge of the host.

mod attach;
mod check;
mod conf;
mod port;
mod switch;

use std::path::Path;

use proto::cni::{Attachment, CniError, CniResult, Plugin, Request};

use super::{collect, connectivity, isolation, masquerade, open_netns, pod, teardown};
use crate::ipam;
use crate::net::socket::Socket;
use crate::owner::Owner;
use conf::{BridgeConf, Gateway};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Bridge;

impl Plugin for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn add(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<CniResult, CniError> {
        let conf = BridgeConf::parse(request)?;
        attach::add(request, &conf, attachment, &open_netns(request, netns)?)
    }

    fn del(&self, request: &Request, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
        teardown::del(request, attachment, netns)
    }

    fn check(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<(), CniError> {
        let conf = BridgeConf::parse(request)?;
        check::check(request, &conf, attachment, &open_netns(request, netns)?)
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        teardown::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let conf = BridgeConf::parse(request)?;
        switch::expect_open(&mut Socket::route()?, &conf)?;
        connectivity::expect_rules(&[masquerade::table(), isolation::table()])?;
        if conf.gateway != Gateway::No {
            let gateway = conf.gateway_link();
            connectivity::expect_forwarding(&mut Socket::route()?, &request.conf.name, &gateway)?;
        }
        if conf.has_ipam { ipam::status(request) } else { Ok(()) }
    }

    fn repair(&self, request: &Request, attachment: &Attachment) -> Result<(), CniError> {
        let conf = BridgeConf::parse(request)?;
        let isolated = || match conf.isolated {
            true => repair_isolation(&conf, request, attachment),
            false => Ok(()),
        };
        let masqueraded = || if conf.ip_masq { masquerade::repair(request, attachment) } else { Ok(()) };
        let forwarded = || {
            let result = pod::previous(request)?;
            let gateways = result.ips.iter().filter_map(attach::gateway_of).map(|at| at.addr());
            Ok(connectivity::forward(
                &mut Socket::route()?,
                gateways.filter(|_| conf.gateway != Gateway::No),
            )?)
        };
        // What cannot be mended keeps nothing else from being mended.
        collect([isolated(), masqueraded(), forwarded()])
    }
}

fn repair_isolation(conf: &BridgeConf, request: &Request, attachment: &Attachment) -> Result<(), CniError> {
    let result = pod::previous(request)?;
    let addresses = pod::addresses_of(&result, pod::interface_index(&result, attachment)?);
    let owner = Owner::new(&request.conf.name, attachment)?;
    let (network, addresses) = (&conf.gateway_link(), &addresses[..]);
    let pod = isolation::Pod { owner: &owner, network, addresses };
    isolation::mend(&mut Socket::netfilter()?, &conf.state_dir, pod)
}

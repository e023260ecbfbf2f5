//! firewall: pods' packets pass the host's packet filter, and pods are kept apart where that is asked for.
//!
//! [`isolation`] keeps apart, in tables of Berth's own; [`accept`] lets pass, in the tables of `iptables` where there
//! are any, because only there it has an effect.

mod accept;
mod conf;
mod isolation;

use std::net::IpAddr;
use std::path::Path;

use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::{attaching, collect, connectivity, damaged, detaching, keys, prev_result};
use crate::net::link;
use crate::net::nft::{self, FoundRule};
use crate::net::socket::Socket;
use crate::owner::{Owner, is_stale};
use conf::{FirewallConf, IngressPolicy};
use isolation::Protection;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Firewall;

impl Plugin for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn add(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<CniResult, CniError> {
        let result = protect(request, attachment)?;
        // Whether it drops the pod's packets cannot be told from here, so this is no failure.
        if let Some(warning) = accept::out_of_reach() {
            eprintln!("firewall: {warning}");
        }
        Ok(result)
    }

    fn del(&self, request: &Request, attachment: &Attachment, _: Option<&Path>) -> Result<(), CniError> {
        let owner = Owner::new(&request.conf.name, attachment)?;
        detaching(request, &owner);
        let mut socket = Socket::netfilter()?;
        // What the reference plugin made has no owner, only addresses.
        let previous = request.conf.prev_result().ok().flatten().unwrap_or_default();
        let addresses: Vec<Vec<u8>> = pod_addresses(&previous).into_iter().map(accept::octets).collect();
        let own = |rule: &FoundRule| match rule.comment.as_str() {
            "" => addresses.iter().any(|address| rule.compares(address)),
            comment => comment == owner.tag(),
        };
        let accepting = accept::remove(&mut socket, &own).map_err(CniError::from);
        let base = keys::state_dir_or_default(request);
        let kept_apart = isolation::remove_of(&mut socket, &base, &owner);
        collect([accepting, kept_apart.map_err(CniError::from)])
    }

    fn check(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<(), CniError> {
        let conf = FirewallConf::parse(request)?;
        let result = prev_result(request)?;
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = pod_addresses(&result);
        let mut socket = Socket::netfilter()?;
        let mut damage = accept::damage(&mut socket, &owner, &addresses)?;
        if let (None, Some(protection)) = (&damage, protection(&conf, &result, &addresses)?) {
            damage = isolation::damage(&mut socket, &owner, &protection)?;
        }
        damage.map_or(Ok(()), |damage| Err(damaged(format!("firewall: {damage}"))))
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let valid = request.conf.valid_attachments()?;
        let stale = |tag: &str| is_stale(tag, &request.conf.name, &valid);
        let mut socket = Socket::netfilter()?;
        let accepting = accept::remove(&mut socket, &|rule| stale(&rule.comment)).map_err(CniError::from);
        let kept_apart = isolation::remove(&mut socket, &keys::state_dir_or_default(request), &stale);
        collect([accepting, kept_apart.map_err(CniError::from)])
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        FirewallConf::parse(request)?;
        let reachable = Socket::netfilter().and_then(|mut socket| nft::generation(&mut socket));
        reachable
            .map(|_| ())
            .map_err(|error| CniError { code: ErrorCode::NOT_AVAILABLE, ..CniError::from(error) })?;
        connectivity::expect_rules(&[isolation::routed(), isolation::bridged()])
    }

    fn repair(&self, request: &Request, attachment: &Attachment) -> Result<(), CniError> {
        let (conf, result) = (FirewallConf::parse(request)?, prev_result(request)?);
        let owner = Owner::new(&request.conf.name, attachment)?;
        let addresses = pod_addresses(&result);
        let protection = protection(&conf, &result, &addresses)?;
        let mut socket = Socket::netfilter()?;
        if let Some(protection) = protection {
            isolation::mend(&mut socket, &keys::state_dir(request)?, &owner, &protection)?;
        }
        if accept::damage(&mut socket, &owner, &addresses)?.is_some() {
            accept::add(&mut socket, &owner, &addresses, &conf.admin_chain)?;
        }
        Ok(())
    }
}

/// Lets the pod's packets pass, and keeps others' from it; undoes all of it where a part fails.
fn protect(request: &Request, attachment: &Attachment) -> Result<CniResult, CniError> {
    let (conf, result) = (FirewallConf::parse(request)?, prev_result(request)?);
    let owner = Owner::new(&request.conf.name, attachment)?;
    attaching(request, &owner);
    let addresses = pod_addresses(&result);
    let protection = protection(&conf, &result, &addresses)?;
    let mut socket = Socket::netfilter()?;
    let base = keys::state_dir(request)?;
    let isolated =
        protection.map_or(Ok(()), |protection| isolation::add(&mut socket, &base, &owner, &protection));
    let outcome =
        isolated.and_then(|()| Ok(accept::add(&mut socket, &owner, &addresses, &conf.admin_chain)?));
    if outcome.is_err() {
        let _ = accept::remove(&mut socket, &|rule| rule.comment == owner.tag());
        let _ = isolation::remove_of(&mut socket, &base, &owner);
    }
    outcome.map(|()| result)
}

/// What the policy asks for; `None` where it is open.
fn protection<'a>(
    conf: &FirewallConf,
    result: &CniResult,
    addresses: &'a [IpAddr],
) -> Result<Option<Protection<'a>>, CniError> {
    if conf.policy == IngressPolicy::Open {
        return Ok(None);
    }
    let mut socket = Socket::route()?;
    for interface in result.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        if link::get(&mut socket, &interface.name)?.is_some_and(|link| link.kind == "bridge") {
            let bridge = interface.name.clone();
            return Ok(Some(Protection { policy: conf.policy, bridge, addresses }));
        }
    }
    Err(CniError::config("ingressPolicy", "prevResult.interfaces names no bridge of this host"))
}

/// The addresses of interfaces inside the container.
fn pod_addresses(result: &CniResult) -> Vec<IpAddr> {
    let inside = |index: Option<usize>| match index.and_then(|index| result.interfaces.get(index)) {
        Some(interface) => !interface.sandbox.is_empty(),
        None => true,
    };
    result.ips.iter().filter(|ip| inside(ip.interface)).map(|ip| ip.address.addr()).collect()
}

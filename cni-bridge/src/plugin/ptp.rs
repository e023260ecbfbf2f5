//! ptp: a pod on a wire of its own to the host, which routes for it.
//!
//! The host's end carries the gateway's address alone, and the host has a route to each address of the pod; the pod
//! reaches its subnet through the gateway.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use proto::cni::result::{Dns, IpConfig};
use proto::cni::{Attachment, CniError, CniResult, Plugin, Request};

use super::pod::{self, Duplicates, Router};
use super::{attaching, collect, connectivity, damaged, keys, masquerade, open_netns, teardown, veth};
use crate::ipam;
use crate::ipam::range::offset;
use crate::net::link::{self, Link, VethPair};
use crate::net::netns::NetNs;
use crate::net::route::Route;
use crate::net::socket::{Message, Socket};
use crate::net::{addr, parameters, route, sysctl};
use crate::owner::Owner;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Ptp;

/// What ptp is asked for.
struct PtpConf {
    ip_masq: bool,
    mtu: Option<u32>,
    dns: Dns,
}

impl PtpConf {
    fn parse(request: &Request) -> Result<Self, CniError> {
        request.args.expect_only(&["IP", "MAC", "GATEWAY"])?;
        if request.conf.ipam_type()?.is_none() {
            return Err(CniError::config("ipam", "missing"));
        }
        Ok(Self { ip_masq: keys::ip_masq(request)?, mtu: keys::mtu(request)?, dns: request.conf.dns()? })
    }
}

impl Plugin for Ptp {
    fn name(&self) -> &'static str {
        "ptp"
    }

    fn add(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<CniResult, CniError> {
        let (conf, netns) = (PtpConf::parse(request)?, open_netns(request, netns)?);
        let owner = Owner::new(&request.conf.name, attachment)?;
        attaching(request, &owner);
        let mut host = Socket::route()?;
        let pair = VethPair {
            host: &owner.host_link(),
            peer: attachment.ifname.as_str(),
            peer_netns: netns.raw_fd(),
            mtu: conf.mtu,
            peer_mac: None,
            group: Owner::draft_group(request.conf.name.as_str()),
        };
        veth::make(&mut host, &pair, &owner, &netns)?;
        let outcome = connect(request, &conf, (attachment, &owner), &netns, &mut host);
        if outcome.is_err() {
            // The first error is the one to report; what is left, DEL will find.
            let _ = teardown::del(request, attachment, Some(netns.path()));
        }
        outcome
    }

    fn del(&self, request: &Request, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
        teardown::del(request, attachment, netns)
    }

    fn check(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<(), CniError> {
        let (conf, netns) = (PtpConf::parse(request)?, open_netns(request, netns)?);
        let owner = Owner::new(&request.conf.name, attachment)?;
        let result = pod::previous(request)?;
        let index = pod::interface_index(&result, attachment)?;
        pod::expect_sandbox(&result, index, &netns)?;
        check_host(&mut Socket::route()?, &owner, &result, index)?;
        let mut inside = netns.run(Socket::route)??;
        check_pod(&mut inside, request, &result, index)?;
        ipam::check(request, attachment)?;
        if !conf.ip_masq {
            return Ok(());
        }
        let addresses = pod::addresses_of(&result, index);
        match masquerade::damage(&mut Socket::netfilter()?, &owner, &addresses)? {
            Some(damage) => Err(damaged(format!("masquerade: {damage}"))),
            None => Ok(()),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        teardown::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        PtpConf::parse(request)?;
        connectivity::expect_rules(&[masquerade::table()])?;
        ipam::status(request)
    }

    fn repair(&self, request: &Request, attachment: &Attachment) -> Result<(), CniError> {
        let conf = PtpConf::parse(request)?;
        let forwarded = || {
            let result = pod::previous(request)?;
            Ok(connectivity::forward(&mut Socket::route()?, result.ips.iter().map(|ip| ip.address.addr()))?)
        };
        let masqueraded = || if conf.ip_masq { masquerade::repair(request, attachment) } else { Ok(()) };
        collect([masqueraded(), forwarded()])
    }
}

fn connect(
    request: &Request,
    conf: &PtpConf,
    (attachment, owner): (&Attachment, &Owner),
    netns: &NetNs,
    host: &mut Socket,
) -> Result<CniResult, CniError> {
    let ifname = attachment.ifname.as_str();
    let mut inside = netns.run(|| {
        pod::prepare(ifname, Router::Host, Duplicates::Impossible);
        Socket::route()
    })??;
    let mut result = pod::addresses(request, attachment, netns.path(), &conf.dns)?.result;
    for ip in &mut result.ips {
        ip.gateway = Some(gateway(ip)?);
    }
    let host_end = pod::expect_link(host, &owner.host_link())?;
    let pod_end = pod::expect_link(&mut inside, ifname)?;
    connectivity::forward(host, result.ips.iter().map(|ip| ip.address.addr()))?;
    sysctl::own_routes(&host_end.name)?;
    host.apply(&host_changes(&host_end, owner, &result))?;
    pod::allow_ipv6(netns, ifname, &result)?;
    inside.apply(&pod_changes(&pod_end, &result))?;
    if conf.ip_masq {
        let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
        masquerade::add(&mut Socket::netfilter()?, &keys::state_dir(request)?, owner, &addresses)?;
    }
    let host_end = veth::wait_for_carrier(host, &host_end.name, &|_| Ok(true))?;
    result.interfaces = vec![pod::describe(&host_end, Path::new("")), pod::describe(&pod_end, netns.path())];
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(1));
    Ok(result)
}

/// The gateway that the IPAM plugin names, or else the subnet's first address.
fn gateway(ip: &IpConfig) -> Result<IpAddr, CniError> {
    let first = offset(ip.address.network(), 1);
    match ip.gateway {
        Some(gateway) if gateway != ip.address.addr() => Ok(gateway),
        None if first != ip.address.addr() && ip.address.contains(&first) => Ok(first),
        _ => Err(CniError::config("ipam", format!("{} has no gateway, which ptp needs", ip.address))),
    }
}

fn host_changes(host_end: &Link, owner: &Owner, result: &CniResult) -> Vec<Message> {
    let mut changes = vec![link::attach(host_end, None, owner.tag())];
    let gateways = result.ips.iter().filter_map(|ip| ip.gateway);
    changes.extend(gateways.map(|gateway| addr::add(host_end, IpNet::from(gateway)).or_exists()));
    let pods = result.ips.iter().map(|ip| Route::to(IpNet::from(ip.address.addr())));
    changes.extend(pods.map(|to| route::add(host_end, &to)));
    changes
}

/// Everything the pod sends goes through the gateway, its neighbours in the subnet included.
fn pod_changes(pod_end: &Link, result: &CniResult) -> Vec<Message> {
    let mut changes = vec![parameters::announce(pod_end)];
    changes.extend(result.ips.iter().map(|ip| addr::add_unrouted(pod_end, ip.address)));
    changes.push(link::set_up(pod_end));
    changes.extend(implied(result).iter().map(|to| route::add(pod_end, to).or_exists()));
    changes.extend(pod::routes(pod_end, result));
    changes
}

fn implied(result: &CniResult) -> Vec<Route> {
    let mut routes = Vec::new();
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let source = Some(ip.address.addr());
        routes.push(Route { source, ..Route::to(IpNet::from(gateway)) });
        if ip.address.prefix_len() < ip.address.max_prefix_len() {
            routes.push(Route { gateway: Some(gateway), source, ..Route::to(ip.address.trunc()) });
        }
    }
    routes
}

fn check_host(host: &mut Socket, owner: &Owner, result: &CniResult, index: usize) -> Result<(), CniError> {
    let host_end = veth::host_end(host, owner, result, "")?;
    if !host_end.up {
        return Err(damaged(format!("link {} is down", host_end.name)));
    }
    let found = addr::list(host, &host_end)?;
    for ip in result.ips.iter().filter(|ip| ip.interface == Some(index)) {
        let own = ip.gateway.map(IpNet::from);
        if let Some(lost) = own.filter(|gateway| !found.contains(gateway)) {
            return Err(damaged(format!("link {} lacks the gateway address {lost}", host_end.name)));
        }
        let to = Route::to(IpNet::from(ip.address.addr()));
        if !route::is_there(host, &host_end, &to)? {
            return Err(damaged(format!("link {} lacks the route to {}", host_end.name, to.dst)));
        }
        let key = connectivity::forwarding(ip.address.addr());
        if sysctl::get(key)? != "1" {
            return Err(damaged(format!("forwarding is off ({key})")));
        }
    }
    Ok(())
}

fn check_pod(
    inside: &mut Socket,
    request: &Request,
    result: &CniResult,
    index: usize,
) -> Result<(), CniError> {
    let link = pod::find(inside, &result.interfaces[index].name)?;
    if link.kind != "veth" || !link.up {
        return Err(damaged(format!("{} is not a veth link that is up", link.name)));
    }
    pod::check(inside, request, &link, (result, index))?;
    for to in implied(result) {
        if !route::is_there(inside, &link, &to)? {
            return Err(damaged(format!("{} lacks the route to {}", link.name, to.dst)));
        }
    }
    Ok(())
}

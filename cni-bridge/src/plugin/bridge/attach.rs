//! ADD: a veth pair between bridge and pod, with addresses and routes.
//!
//! The pair is made first: that it cannot be made twice is what keeps two ADDs of one attachment apart, and its
//! name, derived from the owner, is how DEL finds it again without any record.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use proto::cni::result::{Interface, IpConfig, Route};
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Request};

use super::conf::{BridgeConf, Gateway};
use super::{detach, switch};
use crate::ipam::range::offset;
use crate::net::link::{self, Link, PortMode, VethPair};
use crate::net::netns::NetNs;
use crate::net::socket::{Message, Socket};
use crate::net::{NetError, addr, route, sysctl};
use crate::owner::Owner;
use crate::{ipam, plugin::masquerade};

/// How long to wait for a link to carry frames.
const CARRIER_DEADLINE: Duration = Duration::from_secs(2);

/// Attaches; what was made is undone on failure.
///
/// # Errors
/// Those of [`switch::ensure`], the IPAM plugin and the kernel.
pub fn add(
    request: &Request,
    conf: &BridgeConf,
    attachment: &Attachment,
    netns: &NetNs,
) -> Result<CniResult, CniError> {
    let owner = Owner::new(&request.conf.name, attachment)?;
    let mut host = Socket::route()?;
    let bridge = switch::ensure(&mut host, conf)?;
    let pair = VethPair {
        host: &owner.host_link(),
        peer: attachment.ifname.as_str(),
        peer_netns: netns.raw_fd(),
        mtu: conf.mtu,
        peer_mac: conf.mac,
        group: Owner::draft_group(request.conf.name.as_str()),
    };
    make(&mut host, &pair, &owner, netns)?;
    let mut work = Attaching { request, conf, attachment, netns, owner, host, bridge };
    let outcome = work.connect();
    if outcome.is_err() {
        // The first error is the one to report; what is left, DEL will find.
        let _ = detach::del(request, attachment, Some(netns.path()));
    }
    outcome
}

/// One ADD under way.
struct Attaching<'a> {
    request: &'a Request,
    conf: &'a BridgeConf,
    attachment: &'a Attachment,
    netns: &'a NetNs,
    owner: Owner,
    host: Socket,
    bridge: Link,
}

impl Attaching<'_> {
    fn connect(&mut self) -> Result<CniResult, CniError> {
        let ifname = self.attachment.ifname.as_str();
        let mut pod = self.netns.run(|| enter_pod(ifname))??;
        let mut result = self.addresses()?;
        let host_end = expect_link(&mut self.host, &self.owner.host_link())?;
        let pod_end = expect_link(&mut pod, ifname)?;
        let mut changes = vec![link::attach(&host_end, self.bridge.index, self.owner.tag())];
        if self.conf.port != PortMode::default() {
            changes.push(link::set_port_mode(&host_end, self.conf.port));
        }
        self.host.apply(&changes)?;
        self.gateways(&result)?;
        pod.apply(&pod_changes(&pod_end, &result))?;
        if self.conf.ip_masq {
            let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
            masquerade::add(&mut Socket::netfilter()?, &self.owner, &addresses)?;
        }
        let host_end = self.wait_for_carrier(host_end)?;
        result.interfaces = self.interfaces(&host_end, &pod_end);
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(2));
        Ok(result)
    }

    /// What the IPAM plugin gives, with gateway and default route as configured.
    fn addresses(&self) -> Result<CniResult, CniError> {
        if !self.conf.has_ipam {
            return Ok(CniResult { dns: self.conf.dns.clone(), ..CniResult::default() });
        }
        let mut result = ipam::add(self.request, self.attachment)?;
        result.interfaces.clear();
        if result.ips.is_empty() {
            return Err(CniError::new(ErrorCode::PLUGIN, "the IPAM plugin returned no address"));
        }
        for ip in &mut result.ips {
            if self.conf.gateway != Gateway::No && ip.gateway.is_none() {
                ip.gateway = Some(offset(ip.address.network(), 1));
            }
        }
        if self.conf.gateway == Gateway::Default {
            let missing: Vec<Route> =
                result.ips.iter().filter_map(|ip| default_route(ip, &result.routes)).collect();
            result.routes.extend(missing);
        }
        if !self.conf.dns.is_empty() {
            result.dns = self.conf.dns.clone();
        }
        Ok(result)
    }

    fn gateways(&mut self, result: &CniResult) -> Result<(), CniError> {
        if self.conf.gateway == Gateway::No {
            return Ok(());
        }
        for ip in &result.ips {
            if let Some(gateway) = gateway_of(ip) {
                switch::ensure_gateway(&mut self.host, self.conf, &self.bridge, gateway)?;
            }
        }
        Ok(())
    }

    /// Carrier comes from a queue of the kernel; what is sent before it comes would be lost.
    fn wait_for_carrier(&mut self, mut host_end: Link) -> Result<Link, CniError> {
        let deadline = Instant::now() + CARRIER_DEADLINE;
        let mut pause = Duration::from_micros(200);
        loop {
            host_end = expect_link(&mut self.host, &host_end.name)?;
            let bridge =
                if self.bridge.running { None } else { link::get(&mut self.host, &self.bridge.name)? };
            let bridge_runs = bridge.is_none_or(|bridge| bridge.running);
            if (host_end.running && bridge_runs) || Instant::now() >= deadline {
                return Ok(host_end);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(16));
        }
    }

    fn interfaces(&self, host_end: &Link, pod_end: &Link) -> Vec<Interface> {
        let sandbox = self.netns.path().display().to_string();
        let interface = |link: &Link, sandbox: String| Interface {
            name: link.name.clone(),
            mac: link.mac.to_string(),
            mtu: link.mtu,
            sandbox,
            ..Interface::default()
        };
        vec![
            interface(&self.bridge, String::new()),
            interface(host_end, String::new()),
            interface(pod_end, sandbox),
        ]
    }
}

/// The gateway's address with the prefix of the pod's subnet.
pub fn gateway_of(ip: &IpConfig) -> Option<IpNet> {
    IpNet::new(ip.gateway?, ip.address.prefix_len()).ok()
}

/// The next hop of a route in the result: its own, or for a route of no link scope the subnet's gateway.
pub fn next_hop(route: &Route, result: &CniResult) -> Option<std::net::IpAddr> {
    match route.scope {
        None | Some(0) => route.gw.or_else(|| result.gateway_like(route.dst.addr())),
        Some(_) => route.gw,
    }
}

/// Inside the pod's namespace: settings that must be there before the link comes up, and a socket.
fn enter_pod(ifname: &str) -> Result<Socket, NetError> {
    // Neighbours learn at once that the address has moved here.
    sysctl::set(&format!("ipv4/conf/{ifname}/arp_notify"), "1")?;
    sysctl::set_if_present(&format!("ipv6/conf/{ifname}/accept_ra"), "0")?;
    sysctl::set_if_present(&format!("ipv6/conf/{ifname}/accept_dad"), "0")?;
    Socket::route()
}

/// Addresses, link up, routes: in one go.
fn pod_changes(pod_end: &Link, result: &CniResult) -> Vec<Message> {
    let mut changes: Vec<Message> = result.ips.iter().map(|ip| addr::add(pod_end, ip.address)).collect();
    changes.push(link::set_up(pod_end));
    let routes = result.routes.iter().map(|route| route::Route {
        dst: route.dst.trunc(),
        gateway: next_hop(route, result),
        mtu: route.mtu,
        advmss: route.advmss,
        priority: route.priority,
        table: route.table,
        scope: route.scope,
    });
    // The first of several equal routes wins.
    changes.extend(routes.map(|route| route::add(pod_end, &route).or_exists()));
    changes
}

fn default_route(ip: &IpConfig, routes: &[Route]) -> Option<Route> {
    let v4 = ip.address.addr().is_ipv4();
    let gateway = ip.gateway?;
    let known = routes.iter().any(|route| route.dst.prefix_len() == 0 && route.dst.addr().is_ipv4() == v4);
    let everything = IpNet::new(if v4 { [0; 4].into() } else { [0; 16].into() }, 0).ok()?;
    (!known).then(|| Route::new(everything, Some(gateway)))
}

/// The link called `name`, which was just made.
fn expect_link(socket: &mut Socket, name: &str) -> Result<Link, CniError> {
    link::get(socket, name)?.ok_or_else(|| CniError::new(ErrorCode::PLUGIN, format!("link {name} vanished")))
}

/// Makes the pair. A host's end that an earlier attachment left, whose namespace it was is gone, makes way.
fn make(host: &mut Socket, pair: &VethPair<'_>, owner: &Owner, netns: &NetNs) -> Result<(), CniError> {
    let error = match link::create_veth(host, pair) {
        Ok(()) => return Ok(()),
        Err(error) if error.is_exists() => error,
        Err(error) => return Err(error.into()),
    };
    let taken = netns.run(|| link::get(&mut Socket::route()?, pair.peer))??.is_some();
    match detach::own_link(host, owner)? {
        Some(stale) if !taken => {
            detach::remove(host, &stale)?;
            Ok(link::create_veth(host, pair)?)
        }
        Some(_) | None => {
            let msg = format!("the container already has an interface {}", pair.peer);
            Err(CniError::caused(ErrorCode::PLUGIN, msg, &error))
        }
    }
}

//! ADD: a veth pair between bridge and pod, with addresses and routes.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use proto::cni::result::{Interface, IpConfig, Route};
use proto::cni::{Attachment, CniError, CniResult, Request};

use super::conf::{BridgeConf, ContainerLink, Gateway};
use super::{port, switch};
use crate::ipam::Past;
use crate::ipam::range::{is_tiny, offset};
use crate::net::link::{self, Link, VethPair};
use crate::net::netns::NetNs;
use crate::net::socket::{Message, Socket};
use crate::net::{NetError, neighbour, parameters, sysctl};
use crate::owner::Owner;
use crate::plugin::pod::{self, Duplicates, Router};
use crate::plugin::{attaching, isolation, masquerade, teardown, veth};

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
    attaching(request, &owner);
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
    veth::make(&mut host, &pair, &owner, netns)?;
    let mut work = Attaching { request, conf, attachment, netns, owner, host, bridge, past: Past::Unknown };
    let outcome = work.connect();
    if outcome.is_err() {
        // The first error is the one to report; what is left, DEL will find.
        let _ = teardown::del(request, attachment, Some(netns.path()));
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
    /// Of the pod's addresses.
    past: Past,
}

impl Attaching<'_> {
    fn connect(&mut self) -> Result<CniResult, CniError> {
        let ifname = self.attachment.ifname.as_str();
        let mut result = self.addresses()?;
        let mut inside = self.netns.run(|| self.enter_pod(ifname, &result))??;
        let host_end = pod::expect_link(&mut self.host, &self.owner.host_link())?;
        let pod_end = pod::expect_link(&mut inside, ifname)?;
        port::connect(&mut self.host, self.conf, (&self.bridge, &host_end), (&pod_end, &self.owner))?;
        let gateway_link = self.gateways(&result)?;
        pod::allow_ipv6(self.netns, ifname, &result)?;
        inside.apply(&self.pod_changes(&pod_end, &result))?;
        let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
        let base = &self.conf.state_dir;
        if self.conf.ip_masq {
            masquerade::add(&mut Socket::netfilter()?, base, &self.owner, &addresses)?;
        }
        if self.conf.isolated {
            let network = &self.conf.gateway_link();
            let pod = isolation::Pod { owner: &self.owner, network, addresses: &addresses };
            isolation::add(&mut Socket::netfilter()?, base, pod)?;
        }
        let host_end = self.settle(&mut inside, &host_end, &pod_end)?;
        result.interfaces = self.interfaces(&host_end, &pod_end, gateway_link.as_ref());
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(2));
        Ok(result)
    }

    /// What the IPAM plugin gives, with gateway and default route as configured.
    fn addresses(&mut self) -> Result<CniResult, CniError> {
        if !self.conf.has_ipam {
            return Ok(CniResult { dns: self.conf.dns.clone(), ..CniResult::default() });
        }
        let given = pod::addresses(self.request, self.attachment, self.netns.path(), &self.conf.dns)?;
        let mut result = given.result;
        self.past = given.past;
        for ip in &mut result.ips {
            if self.conf.gateway == Gateway::No {
                continue;
            }
            if let Some(gateway) = ip.gateway {
                expect_on_link(ip, gateway)?;
                continue;
            }
            if is_tiny(&ip.address) {
                return Err(CniError::config("ipam", format!("{} has no room for a gateway", ip.address)));
            }
            ip.gateway = Some(offset(ip.address.network(), 1));
        }
        if self.conf.gateway == Gateway::Default {
            let missing: Vec<Route> =
                result.ips.iter().filter_map(|ip| default_route(ip, &result.routes)).collect();
            result.routes.extend(missing);
        }
        Ok(result)
    }

    /// Gives the gateway addresses to the bridge, or to the link in the pods' VLAN, which is returned. What the host knows
    /// there of whoever had the pod's addresses is out of date.
    fn gateways(&mut self, result: &CniResult) -> Result<Option<Link>, CniError> {
        if self.conf.gateway == Gateway::No {
            self.forget_neighbours(&self.bridge.clone(), result)?;
            return Ok(None);
        }
        let vlan = self.conf.vlan.map(|id| port::gateway_link(&mut self.host, self.conf, &self.bridge, id));
        let vlan = vlan.transpose()?;
        let link = vlan.as_ref().unwrap_or(&self.bridge);
        for gateway in result.ips.iter().filter_map(gateway_of) {
            let asked = (self.request, &self.owner);
            switch::ensure_gateway(&mut self.host, self.conf, asked, link, gateway)?;
        }
        self.forget_neighbours(&link.clone(), result)?;
        Ok(vlan)
    }

    fn forget_neighbours(&mut self, link: &Link, result: &CniResult) -> Result<(), NetError> {
        let forgotten = result.ips.iter().map(|ip| neighbour::forget(link, ip.address.addr()));
        self.host.apply(&forgotten.collect::<Vec<_>>())
    }

    /// Inside the pod's namespace: settings that must be there before the link comes up, and a socket.
    fn enter_pod(&self, ifname: &str, result: &CniResult) -> Result<Socket, NetError> {
        if self.is_v4_only(result) {
            pod::ignore_announcements(ifname);
            return Socket::route();
        }
        let router = if self.conf.gateway == Gateway::No { Router::OnTheWire } else { Router::Host };
        // Without addresses of ours, it is the pod that has to look whose its own are.
        let duplicates = if self.conf.has_ipam { self.conf.duplicates } else { Duplicates::LookedFor };
        pod::prepare(ifname, router, duplicates);
        if self.conf.duplicates == Duplicates::LookedFor {
            sysctl::set_if_present(&format!("ipv6/conf/{ifname}/accept_dad"), "1")?;
        }
        Socket::route()
    }

    fn pod_changes(&self, pod_end: &Link, result: &CniResult) -> Vec<Message> {
        if self.conf.container_link == ContainerLink::Down {
            return vec![parameters::announce(pod_end)];
        }
        let mut changes = Vec::new();
        if self.is_v4_only(result) {
            changes.push(parameters::stay_without_addresses(pod_end));
        }
        changes.extend(pod::changes(pod_end, result, self.conf.duplicates));
        changes
    }

    /// Whether IPv6 leads nowhere from the pod: this host is its router and gives it none. An address of the kernel's
    /// would only lead around what guards its IPv4 address, and announcing it reaches every pod of the bridge.
    fn is_v4_only(&self, result: &CniResult) -> bool {
        let v4 = |ip: &IpConfig| ip.address.addr().is_ipv4();
        self.conf.gateway != Gateway::No && self.conf.has_ipam && result.ips.iter().all(v4)
    }

    /// Waits until frames go through, and until the pod's addresses are its own; other pods may know them as another's.
    fn settle(&mut self, inside: &mut Socket, host_end: &Link, pod_end: &Link) -> Result<Link, CniError> {
        if self.conf.container_link == ContainerLink::Down {
            return Ok(host_end.clone());
        }
        let bridge = &self.bridge;
        let bridge_runs = |host: &mut Socket| {
            let now = if bridge.running { None } else { link::get(host, &bridge.name)? };
            Ok(now.is_none_or(|now| now.running))
        };
        let host_end = veth::wait_for_carrier(&mut self.host, &host_end.name, &bridge_runs)?;
        if self.conf.duplicates == Duplicates::LookedFor {
            pod::await_search(inside, pod_end)?;
        }
        // What was announced when the link came up ended at the port, which was not open yet. All ports of the bridge hear
        // it, so it is left out where nobody can have heard of another who had the addresses.
        if self.past == Past::Unknown || self.conf.gateway == Gateway::No {
            inside.apply(&[link::set_same_mac(pod_end)])?;
        }
        Ok(host_end)
    }

    fn interfaces(&self, host_end: &Link, pod_end: &Link, gateway: Option<&Link>) -> Vec<Interface> {
        let on_host = |link| pod::describe(link, Path::new(""));
        let mut interfaces =
            vec![on_host(&self.bridge), on_host(host_end), pod::describe(pod_end, self.netns.path())];
        interfaces.extend(gateway.map(on_host));
        interfaces
    }
}

/// A bridge is in its pods' subnet.
fn expect_on_link(ip: &IpConfig, gateway: IpAddr) -> Result<(), CniError> {
    if ip.address.contains(&gateway) || ip.address.prefix_len() == ip.address.max_prefix_len() {
        return Ok(());
    }
    Err(CniError::config("ipam", format!("gateway {gateway} is not in {}", ip.address.trunc())))
}

/// The gateway's address with the prefix of the pod's subnet.
pub fn gateway_of(ip: &IpConfig) -> Option<IpNet> {
    IpNet::new(ip.gateway?, ip.address.prefix_len()).ok()
}

fn default_route(ip: &IpConfig, routes: &[Route]) -> Option<Route> {
    let v4 = ip.address.addr().is_ipv4();
    let gateway = ip.gateway?;
    let known = routes.iter().any(|route| route.dst.prefix_len() == 0 && route.dst.addr().is_ipv4() == v4);
    let everything = IpNet::new(if v4 { [0; 4].into() } else { [0; 16].into() }, 0).ok()?;
    (!known).then(|| Route::new(everything, Some(gateway)))
}

//! ADD.

use std::net::IpAddr;

use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Request};
use rustix::io::Errno;

use super::conf::{ChildConf, Master};
use super::{detach, parent, shim};
use crate::ledger::{Entry, Ledger};
use crate::net::link::{self, Link};
use crate::net::netns::NetNs;
use crate::net::socket::Socket;
use crate::net::sublink::{self, Kind, SubLink};
use crate::net::{NetError, removal};
use crate::owner::Owner;
use crate::plugin::pod::{self, Duplicates, Router};

/// Attaches; what was made is undone on failure.
///
/// # Errors
/// Those of [`parent::ensure`], the IPAM plugin and the kernel.
pub fn add(
    request: &Request,
    conf: &ChildConf,
    attachment: &Attachment,
    netns: &NetNs,
) -> Result<CniResult, CniError> {
    let previous = request.conf.prev_result()?;
    if matches!(conf.kind, Kind::IpVlan(_)) && !conf.has_ipam && previous.is_none_or(|all| all.ips.is_empty())
    {
        return Err(CniError::config("ipam", "missing"));
    }
    let owner = Owner::new(&request.conf.name, attachment)?;
    let mut host = Socket::route()?;
    let mut inside = netns.run(Socket::route)??;
    if link::get(&mut inside, attachment.ifname.as_str())?.is_some() {
        return Err(name_taken(attachment));
    }
    let lower_socket = if is_inside(conf) { &mut inside } else { &mut host };
    let plan = parent::plan(lower_socket, conf, &request.conf.name)?;
    let mut work = Attaching { request, conf, attachment, netns, owner, plan, host, inside };
    let outcome = work.connect();
    if outcome.is_err() {
        // The first error is the one to report; what is left, DEL will find.
        let _ = detach::del(request, attachment, Some(netns.path()), conf.kind.name());
    }
    outcome
}

/// One ADD under way.
struct Attaching<'a> {
    request: &'a Request,
    conf: &'a ChildConf,
    attachment: &'a Attachment,
    netns: &'a NetNs,
    owner: Owner,
    plan: parent::Plan,
    host: Socket,
    inside: Socket,
}

impl Attaching<'_> {
    fn connect(&mut self) -> Result<CniResult, CniError> {
        let parent = self.parent()?;
        let link = self.make(&parent)?;
        let mut result = self.addresses()?;
        pod::allow_ipv6(self.netns, &link.name, &result)?;
        self.inside.apply(&pod::changes(&link, &result, Duplicates::LookedFor))?;
        if result.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
            pod::await_search(&mut self.inside, &link)?;
        }
        self.shim(&parent, &result)?;
        let link = pod::expect_link(&mut self.inside, &link.name)?;
        let index = result.interfaces.len();
        result.interfaces.push(pod::describe(&link, self.netns.path()));
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(index));
        Ok(result)
    }

    /// The parent, after the ledger says what will be used.
    fn parent(&mut self) -> Result<Link, CniError> {
        let ledger = Ledger::open(&self.conf.state_dir)?;
        if self.is_on_the_wire() {
            parent::expect_sole(&mut self.host, &ledger, &self.plan, &self.request.conf.name)?;
        }
        ledger.write(&self.owner, &self.entry(Vec::new())?)?;
        let socket = if is_inside(self.conf) { &mut self.inside } else { &mut self.host };
        parent::ensure(socket, self.conf, &self.plan, &ledger)
    }

    /// Whether the pod's frames are on a link of the host that is not Berth's, under addresses of their own.
    fn is_on_the_wire(&self) -> bool {
        let is_macvlan = matches!(self.conf.kind, Kind::MacVlan { .. });
        is_macvlan && self.plan.made.is_none() && !is_inside(self.conf)
    }

    fn entry(&self, reached: Vec<IpAddr>) -> Result<Entry, CniError> {
        let mut shared = Vec::new();
        if !self.conf.shim.is_empty() {
            shared.push(shim::name(&self.request.conf.name, &self.plan.name));
        }
        if self.plan.made.is_some() || self.is_on_the_wire() {
            shared.push(self.plan.name.clone());
        }
        let netns = Some(self.netns.identity()?);
        Ok(Entry { path: self.netns.path().to_owned(), netns, shared, reached })
    }

    /// The pod's link, down, with its name and the owner's tag.
    fn make(&mut self, parent: &Link) -> Result<Link, CniError> {
        let draft = self.owner.draft_link();
        if let Some(stale) = link::get(&mut self.inside, &draft)? {
            removal::remove(&mut self.inside, &stale)?;
        }
        let inside = is_inside(self.conf);
        let wanted = SubLink {
            name: &draft,
            lower: parent.index,
            netns: (!inside).then(|| self.netns.raw_fd()),
            mtu: self.conf.mtu,
            mac: self.conf.mac,
            kind: self.conf.kind,
        };
        let socket = if inside { &mut self.inside } else { &mut self.host };
        sublink::create(socket, &wanted).map_err(|error| refused(wanted.kind, &parent.name, &error))?;
        let ifname = self.attachment.ifname.as_str();
        let link = pod::expect_link(&mut self.inside, &draft)?;
        match self.inside.apply(&[link::rename(&link, ifname, self.owner.tag())]) {
            Err(error) if error.is_exists() => return Err(name_taken(self.attachment)),
            other => other?,
        }
        self.netns.run(|| pod::prepare(ifname, Router::OnTheWire, Duplicates::LookedFor))?;
        pod::expect_link(&mut self.inside, ifname)
    }

    fn addresses(&self) -> Result<CniResult, CniError> {
        if self.conf.has_ipam {
            let given = pod::addresses(self.request, self.attachment, self.netns.path(), &self.conf.dns);
            return given.map(|given| given.result);
        }
        // Chained: the addresses are those of the plugin before.
        let previous = request_result(self.request, self.conf)?;
        let dns = if self.conf.dns.is_empty() { previous.dns } else { self.conf.dns.clone() };
        Ok(CniResult { dns, ..previous })
    }

    fn shim(&mut self, parent: &Link, result: &CniResult) -> Result<(), CniError> {
        if self.conf.shim.is_empty() {
            return Ok(());
        }
        let pods: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
        let ledger = Ledger::open(&self.conf.state_dir)?;
        ledger.write(&self.owner, &self.entry(pods.clone())?)?;
        let name = shim::name(&self.request.conf.name, &self.plan.name);
        shim::ensure(&mut self.host, &ledger, parent, (&name, &self.conf.shim), &pods)
    }
}

/// Only ipvlan takes over what the plugin before it gave.
fn request_result(request: &Request, conf: &ChildConf) -> Result<CniResult, CniError> {
    match conf.kind {
        Kind::IpVlan(_) => Ok(request.conf.prev_result()?.unwrap_or_default()),
        _ => Ok(CniResult::default()),
    }
}

fn is_inside(conf: &ChildConf) -> bool {
    matches!(conf.master, Master::InContainer(_))
}

/// What it means that the kernel makes no link of this kind on this parent.
fn refused(kind: Kind, parent: &str, error: &NetError) -> CniError {
    let msg = match (error.errno(), kind) {
        (Some(Errno::OPNOTSUPP), _) => return parent::lacks(kind.module(), error),
        (Some(Errno::EXIST), Kind::Vlan(_)) => format!("vlanId: another link has this VLAN of {parent}"),
        (Some(Errno::BUSY), _) => {
            format!("master: link {parent} is a port of something, or has links of another kind on it")
        }
        (Some(Errno::INVAL), Kind::MacVlan { .. }) => {
            format!("mode: link {parent} has links on it, and a mode does not go with others")
        }
        _ => error.to_string(),
    };
    CniError::caused(ErrorCode::PLUGIN, msg, error)
}

fn name_taken(attachment: &Attachment) -> CniError {
    let msg = format!("the container already has an interface {}", attachment.ifname);
    CniError::new(ErrorCode::PLUGIN, msg)
}

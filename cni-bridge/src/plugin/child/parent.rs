//! What a pod's link is on top of: a link of the host, a VLAN of it made on demand, or a link that leads nowhere.

use proto::cni::{CniError, ErrorCode, NetworkName};

use super::conf::{ChildConf, Master};
use crate::ledger::{Ledger, Users};
use crate::net::link::{self, Link, OWN_GROUP};
use crate::net::removal;
use crate::net::route;
use crate::net::socket::Socket;
use crate::net::sublink::{self, Kind, SubLink};
use crate::net::sysctl;
use crate::owner::{Owner, hashed_name};

/// A parent that is there, or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// How it is made, where it is Berth's.
    pub made: Option<Made>,
}

/// How a parent of Berth's is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// The frames of one VLAN of the link.
    Vlan(String, u16),
    /// On nothing.
    Nowhere,
}

/// Which link the configuration means, where `host` looks.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] where there is none and none can be made.
pub fn plan(host: &mut Socket, conf: &ChildConf, network: &NetworkName) -> Result<Plan, CniError> {
    let foreign = |name: &str| Plan { name: name.to_owned(), made: None };
    match &conf.master {
        Master::InContainer(Some(name)) => Ok(foreign(name)),
        Master::Nowhere => {
            Ok(Plan { name: hashed_name("void", network.as_str()), made: Some(Made::Nowhere) })
        }
        master @ (Master::DefaultRoute | Master::InContainer(None)) => {
            let index = route::default_link(host)?;
            let found = index.map(|index| link::by_index(host, index)).transpose()?.flatten();
            let whose = if *master == Master::DefaultRoute { "host" } else { "container" };
            let missing =
                || CniError::config("master", format!("missing, and the {whose} has no default route"));
            Ok(foreign(&found.ok_or_else(missing)?.name))
        }
        Master::Link(name) => match link::get(host, name)? {
            Some(found) if !is_own(&found) => Ok(foreign(name)),
            // Gone or Berth's: only one that is made on demand can be meant.
            _ => on_demand(host, name),
        },
    }
}

fn on_demand(host: &mut Socket, name: &str) -> Result<Plan, CniError> {
    let missing = || CniError::config("master", format!("link {name} does not exist"));
    let (below, digits) = name.rsplit_once('.').ok_or_else(missing)?;
    let id: u16 = digits.parse().map_err(|_| missing())?;
    if digits.starts_with('0') && digits != "0" || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(missing());
    }
    if !(1..=4094).contains(&id) {
        return Err(CniError::config("master", format!("{name}: VLAN {id} is not in 1 to 4094")));
    }
    if link::get(host, below)?.is_none() {
        return Err(CniError::config("master", format!("{name}: link {below} does not exist")));
    }
    Ok(Plan { name: name.to_owned(), made: Some(Made::Vlan(below.to_owned(), id)) })
}

/// Whether no other network has pods that send frames without a tag on the same link: they would be one network on
/// the wire, and are to talk through a router only. A VLAN's frames have a tag.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] naming the network that has the link.
pub fn expect_sole(
    host: &mut Socket,
    ledger: &Ledger,
    plan: &Plan,
    network: &NetworkName,
) -> Result<(), CniError> {
    let name = &plan.name;
    if link::get(host, name)?.is_none_or(|parent| parent.kind == "vlan") {
        return Ok(());
    }
    match ledger.other_network(name, network.as_str())? {
        None => Ok(()),
        Some(other) => {
            let problem = format!(
                "link {name} has pods of network {other:?}, and carries one network without a VLAN; name one of its \
                 VLANs, as {name}.<1 to 4094>"
            );
            Err(CniError::config("master", problem))
        }
    }
}

/// The parent, made if it is to be; up, and large enough. The caller has written in the ledger that it uses it.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`], [`ErrorCode::IO_FAILURE`] where the kernel lacks what it takes.
pub fn ensure(host: &mut Socket, conf: &ChildConf, plan: &Plan, ledger: &Ledger) -> Result<Link, CniError> {
    let mut found = link::get(host, &plan.name)?;
    if let (Some(made), None) = (&plan.made, &found) {
        ledger.mark(&mark_of_made(&plan.name))?;
        make(host, &plan.name, made, conf.mtu)?;
        found = link::get(host, &plan.name)?;
    }
    let mut parent = found.ok_or_else(|| gone(&plan.name))?;
    if is_own(&parent) {
        count_here(host, &parent, ledger)?;
    }
    if plan.made.is_some() {
        sysctl::own_routes(&plan.name)?;
    }
    if is_own(&parent) && !parent.up {
        host.apply(&[link::set_up(&parent)])?;
        parent.up = true;
    } else {
        fits(&parent, conf)?;
    }
    if conf.promiscuous && !parent.promiscuous {
        // The ledger is the host's; what is inside of the pod goes with it.
        if !matches!(conf.master, Master::InContainer(_)) {
            ledger.mark(&mark_of_promiscuous(&plan.name))?;
        }
        let set = host.apply(&[link::set_promiscuous(&parent)]);
        set.map_err(|error| {
            let msg = format!("promiscMode: link {} cannot receive every frame", plan.name);
            CniError::caused(ErrorCode::PLUGIN, msg, &error)
        })?;
    }
    Ok(parent)
}

/// A link of Berth's says where its users are counted: elsewhere its last one would be another than here.
fn count_here(host: &mut Socket, parent: &Link, ledger: &Ledger) -> Result<(), CniError> {
    let here = ledger.name();
    match parent.alias.as_str() {
        alias if alias == here => Ok(()),
        // Just made, or by an ADD that was killed.
        "" if ledger.is_marked(&mark_of_made(&parent.name)) => {
            Ok(host.apply(&[link::set_alias(parent, &here)])?)
        }
        alias => {
            let problem =
                format!("the users of link {} are counted elsewhere ({alias:?}), not in {here}", parent.name);
            Err(CniError::config("stateDir", problem))
        }
    }
}

/// Whether a parent that is there is up and large enough.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`].
pub fn fits(parent: &Link, conf: &ChildConf) -> Result<(), CniError> {
    if !parent.up {
        return Err(CniError::config("master", format!("link {} is down", parent.name)));
    }
    match conf.mtu {
        Some(mtu) if mtu > parent.mtu => {
            let problem = format!("{mtu} is above {}, the MTU of link {}", parent.mtu, parent.name);
            Err(CniError::config("mtu", problem))
        }
        _ => Ok(()),
    }
}

/// For STATUS: whether the parent is there or could be made.
///
/// # Errors
/// As [`plan`] and [`fits`].
pub fn probe(host: &mut Socket, conf: &ChildConf, network: &NetworkName) -> Result<(), CniError> {
    // Chained, a missing master comes with ADD only.
    let later = conf.master == Master::DefaultRoute && !conf.has_ipam;
    if later || matches!(conf.master, Master::InContainer(_) | Master::Nowhere) {
        return Ok(());
    }
    let plan = plan(host, conf, network)?;
    let lowest = match &plan.made {
        Some(Made::Vlan(below, _)) => below,
        _ => &plan.name,
    };
    fits(&link::get(host, lowest)?.ok_or_else(|| gone(lowest))?, conf)
}

/// Whether the link that the configuration names is gone or down, so that what is on top of it reaches nobody.
///
/// # Errors
/// [`crate::net::NetError`].
pub fn is_unusable(host: &mut Socket, conf: &ChildConf) -> Result<bool, CniError> {
    match &conf.master {
        Master::Link(name) => Ok(!link::get(host, name)?.is_some_and(|parent| parent.up)),
        _ => Ok(false),
    }
}

fn make(host: &mut Socket, name: &str, made: &Made, mtu: Option<u32>) -> Result<(), CniError> {
    let outcome = match made {
        Made::Nowhere => sublink::create_nowhere(host, name, mtu),
        Made::Vlan(below, id) => {
            let lower = link::get(host, below)?.ok_or_else(|| gone(below))?;
            if !lower.up {
                return Err(CniError::config("master", format!("{name}: link {below} is down")));
            }
            let kind = Kind::Vlan(*id);
            let wanted = SubLink { name, lower: lower.index, netns: None, mtu: None, mac: None, kind };
            sublink::create_shared(host, &wanted)
        }
    };
    let module = match made {
        Made::Nowhere => "dummy",
        Made::Vlan(..) => "8021q",
    };
    match outcome {
        Err(error) if error.is_unsupported() => Err(lacks(module, &error)),
        Err(error) if error.is_exists() => {
            let msg = format!("master: {name} cannot be made: its VLAN is on a link of another name");
            Err(CniError::caused(ErrorCode::INVALID_NETWORK_CONFIG, msg, &error))
        }
        other => Ok(other?),
    }
}

/// The kernel lacks a module.
pub fn lacks(module: &str, error: &crate::net::NetError) -> CniError {
    let msg = format!("the kernel does not have what module {module} brings");
    CniError::caused(ErrorCode::IO_FAILURE, msg, error)
}

/// Takes the owner from a shared link's users; the last one takes along what was done to it, and the link itself
/// where it is Berth's.
///
/// # Errors
/// What could not be undone.
pub fn release(host: &mut Socket, ledger: &Ledger, name: &str, owner: &Owner) -> Result<(), CniError> {
    match ledger.release(name, owner)? {
        Users::Some => Ok(()),
        Users::None => retire(host, ledger, name),
    }
}

/// Undoes what a killed DEL has left of links without users.
///
/// # Errors
/// What could not be undone.
pub fn sweep(host: &mut Socket, ledger: &Ledger) -> Result<(), CniError> {
    for prefix in [mark_of_made(""), mark_of_promiscuous("")] {
        for name in ledger.marked(&prefix)? {
            if ledger.users(&name)? == Users::None {
                retire(host, ledger, &name)?;
            }
        }
    }
    Ok(())
}

fn retire(host: &mut Socket, ledger: &Ledger, name: &str) -> Result<(), CniError> {
    let (made, promiscuous) = (mark_of_made(name), mark_of_promiscuous(name));
    if let Some(found) = link::get(host, name)? {
        if ledger.is_marked(&promiscuous) {
            host.apply(&[link::clear_promiscuous(&found)])?;
        }
        let counted_here = found.alias.is_empty() || found.alias == ledger.name();
        if ledger.is_marked(&made) && is_own(&found) && counted_here {
            removal::remove(host, &found)?;
        }
    }
    ledger.unmark(&promiscuous)?;
    Ok(ledger.unmark(&made)?)
}

/// A shared link that is Berth's. Bridges are never shared in this sense: they stay.
pub fn is_own(link: &Link) -> bool {
    link.group == OWN_GROUP && ["vlan", "dummy", "ifb", "macvlan"].contains(&link.kind.as_str())
}

/// The ledger's mark on a link of Berth's.
pub fn mark_of_made(name: &str) -> String {
    format!("made.{name}")
}

fn mark_of_promiscuous(name: &str) -> String {
    format!("promiscuous.{name}")
}

fn gone(name: &str) -> CniError {
    CniError::config("master", format!("link {name} does not exist"))
}

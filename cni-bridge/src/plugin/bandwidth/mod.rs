//! bandwidth: limits how fast a pod receives and sends.
//!
//! What goes to the pod is held back where the host's end of its veth pair sends; what comes from it is redirected
//! through a link of kind ifb and held back there. That link's name follows from network and container, so that DEL
//! finds it without any record.

mod conf;

use std::path::Path;

use proto::cni::result::Interface;
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, NetworkName, Plugin, Request};
use sha2::{Digest, Sha512};

use super::{collect, damaged, open_netns, prev_result};
use crate::net::link::{self, Link};
use crate::net::netns::NetNs;
use crate::net::socket::Socket;
use crate::net::traffic::{self, Bucket};
use crate::net::{NetError, device};
use crate::owner::{Owner, is_stale};
use conf::BandwidthConf;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Bandwidth;

impl Plugin for Bandwidth {
    fn name(&self) -> &'static str {
        "bandwidth"
    }

    fn add(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<CniResult, CniError> {
        let conf = BandwidthConf::parse(request)?;
        let mut result = prev_result(request)?;
        if conf == BandwidthConf::default() {
            return Ok(result);
        }
        let owner = Owner::new(&request.conf.name, attachment)?;
        let mut host = Socket::route()?;
        let veth = host_end(&mut host, &open_netns(request, netns)?, attachment)?;
        let limited = limit(&mut host, &conf, &veth, (&owner, (&request.conf.name, attachment)));
        if limited.is_err() {
            // The first error is the one to report; what is left, DEL will find.
            let _ = remove(&mut host, (&owner, (&request.conf.name, attachment)), Some(veth));
        }
        result.interfaces.extend(limited?);
        Ok(result)
    }

    fn del(&self, request: &Request, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
        let owner = Owner::new(&request.conf.name, attachment)?;
        let mut host = Socket::route()?;
        let veth = match link::get(&mut host, &owner.host_link())? {
            Some(own) => Some(own),
            // Another plugin's link: only the pod's end leads to it. Where that is gone, so is the link.
            None => netns.and_then(|path| {
                let netns = NetNs::open(path).ok().filter(|netns| matches!(netns.is_own(), Ok(false)))?;
                device::host_end::<CniError>(&mut host, &netns, attachment.ifname.as_str()).ok().flatten()
            }),
        };
        remove(&mut host, (&owner, (&request.conf.name, attachment)), veth)
    }

    fn check(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<(), CniError> {
        let conf = BandwidthConf::parse(request)?;
        prev_result(request)?;
        let mut host = Socket::route()?;
        if conf == BandwidthConf::default() {
            return Ok(());
        }
        let veth = host_end(&mut host, &open_netns(request, netns)?, attachment)?;
        if let Some(bucket) = conf.ingress {
            expect_bucket(&mut host, &veth, bucket)?;
        }
        let Some(bucket) = conf.egress else { return Ok(()) };
        let owner = Owner::new(&request.conf.name, attachment)?;
        let (name, detour) = own_ifb(&mut host, (&owner, (&request.conf.name, attachment)))?;
        let detour = detour.filter(|link| link.up);
        let detour = detour.ok_or_else(|| damaged(format!("{name} is not a link of kind ifb that is up")))?;
        expect_bucket(&mut host, &detour, bucket)?;
        match traffic::redirected_to(&mut host, &veth)? {
            Some(index) if index == detour.index => Ok(()),
            _ => Err(damaged(format!("link {} is not redirected through {name}", veth.name))),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let valid = request.conf.valid_attachments()?;
        let mut host = Socket::route()?;
        let links = link::list(&mut host)?;
        let network = &request.conf.name;
        // What an ADD that was killed has made and not yet tagged.
        let draft = |link: &Link| {
            link.alias.is_empty()
                && link.group == Owner::draft_group(network.as_str())
                && !valid.iter().any(|attachment| names(network, attachment).contains(&link.name))
        };
        let stale =
            |link: &&Link| link.kind == "ifb" && (is_stale(&link.alias, network, &valid) || draft(link));
        collect(links.iter().filter(stale).map(|link| Ok(delete(&mut host, link)?)).collect::<Vec<_>>())
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        BandwidthConf::parse(request)?;
        Socket::route()
            .map(|_| ())
            .map_err(|error| CniError { code: ErrorCode::NOT_AVAILABLE, ..CniError::from(error) })
    }
}

/// The name that the reference plugin gives: prefix and the beginning of a hash.
fn ifb_name(network: &NetworkName, attachment: &Attachment) -> String {
    let hash = Sha512::digest(format!("{network}{}", attachment.container_id));
    let digits: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("bwp{digits}")
}

/// The names that the attachment's ifb may have.
fn names(network: &NetworkName, attachment: &Attachment) -> Vec<String> {
    let own = Owner::new(network, attachment).map(|owner| own_ifb_name(&owner));
    own.into_iter().chain([ifb_name(network, attachment)]).collect()
}

/// The name that leaves nothing of the owner out.
fn own_ifb_name(owner: &Owner) -> String {
    let hash = Sha512::digest(owner.tag());
    let digits: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("bwpx{digits}")
}

/// An attachment, as owner and as what that was made of.
type Who<'a> = (&'a Owner, (&'a NetworkName, &'a Attachment));

/// Name and link of the attachment's ifb. The reference's name leaves out the interface: where another interface of
/// the container has that name, ours follows from the whole owner.
fn own_ifb(
    host: &mut Socket,
    (owner, (network, attachment)): Who<'_>,
) -> Result<(String, Option<Link>), NetError> {
    let own = own_ifb_name(owner);
    if let Some(found) = link::get(host, &own)?.filter(|link| link.kind == "ifb") {
        return Ok((own, Some(found)));
    }
    let usual = ifb_name(network, attachment);
    match link::get(host, &usual)?.filter(|link| link.kind == "ifb") {
        Some(found) if !found.alias.is_empty() && found.alias != owner.tag() => Ok((own, None)),
        found => Ok((usual, found)),
    }
}

fn host_end(host: &mut Socket, netns: &NetNs, attachment: &Attachment) -> Result<Link, CniError> {
    let ifname = attachment.ifname.as_str();
    let found = device::host_end::<CniError>(host, netns, ifname)?;
    found.ok_or_else(|| {
        let msg = format!("{ifname} is no end of a veth pair whose other end is on this host");
        CniError::new(ErrorCode::PLUGIN, msg)
    })
}

/// Sets the buckets; returns the link that was made for what comes from the pod.
fn limit(
    host: &mut Socket,
    conf: &BandwidthConf,
    veth: &Link,
    who: Who<'_>,
) -> Result<Option<Interface>, CniError> {
    if let Some(bucket) = conf.ingress {
        host.apply(&[traffic::shape(veth, bucket)])?;
    }
    let Some(bucket) = conf.egress else { return Ok(None) };
    // Left by an ADD that was cut off.
    let (ifb, stale) = own_ifb(host, who)?;
    if let Some(stale) = stale {
        delete(host, &stale)?;
    }
    device::create_ifb(host, &ifb, veth.mtu, Owner::draft_group(who.1.0.as_str()))?;
    let vanished = || CniError::new(ErrorCode::PLUGIN, format!("link {ifb} vanished"));
    let detour = link::get(host, &ifb)?.ok_or_else(vanished)?;
    host.apply(&[device::tag(&detour, who.0.tag()), traffic::shape(&detour, bucket)])?;
    let [unlimited, _] = traffic::clear(veth);
    // Whatever caught packets before makes way; mostly nothing did.
    let _ = host.apply(&[unlimited]);
    host.apply(&traffic::redirect(veth, &detour))?;
    Ok(Some(Interface { name: detour.name.clone(), mac: detour.mac.to_string(), ..Interface::default() }))
}

/// Removes the attachment's ifb link, and the limits of the veth where that is still there.
fn remove(host: &mut Socket, who: Who<'_>, veth: Option<Link>) -> Result<(), CniError> {
    if let Some(veth) = veth {
        // It goes with the plugin that made it; until then nothing may be redirected to a link that is gone.
        traffic::clear(&veth).into_iter().for_each(|change| {
            let _ = host.apply(&[change]);
        });
    }
    match own_ifb(host, who)? {
        (_, Some(link)) => Ok(delete(host, &link)?),
        (_, None) => Ok(()),
    }
}

fn delete(host: &mut Socket, link: &Link) -> Result<(), NetError> {
    match link::delete(host, link) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

fn expect_bucket(host: &mut Socket, link: &Link, bucket: Bucket) -> Result<(), CniError> {
    match traffic::bucket(host, link)? {
        Some(found) if bucket.is(found) => Ok(()),
        Some(_) => Err(damaged(format!("the rate limit of link {} differs", link.name))),
        None => Err(damaged(format!("link {} has no rate limit", link.name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_references() {
        let attachment = Attachment { container_id: "c1".parse().unwrap(), ifname: "eth0".parse().unwrap() };
        // The first 12 digits of the SHA-512 of "netc1".
        assert_eq!(ifb_name(&"net".parse().unwrap(), &attachment), "bwp623e1c388032");
    }
}

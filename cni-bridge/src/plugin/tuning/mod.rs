//! tuning: kernel parameters of the pod's network namespace, and settings of its interface.

mod allowlist;
mod backup;
mod conf;

use std::path::Path;

use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::{damaged, open_netns, prev_result};
use crate::net::device::{self, Change, Settings};
use crate::net::netns::{NetNs, NetNsError};
use crate::net::socket::Socket;
use crate::net::sysctl;
use allowlist::Allowlist;
use backup::Backup;
use conf::TuningConf;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Tuning;

impl Plugin for Tuning {
    fn name(&self) -> &'static str {
        "tuning"
    }

    fn add(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<CniResult, CniError> {
        let conf = TuningConf::parse(request)?;
        expect_allowed(&conf, Path::new(allowlist::FILE))?;
        let mut result = prev_result(request)?;
        let netns = open_netns(request, netns)?;
        netns.run(|| set_parameters(&conf, attachment))??;
        if !conf.change.is_empty() {
            let changed = change(request, &conf, attachment, &netns);
            if changed.is_err() {
                let _ = restore(&conf.data_dir, attachment, Some(&netns));
            }
            changed?;
            tell(&mut result, attachment, &conf.change);
        }
        Ok(result)
    }

    fn del(&self, request: &Request, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
        let data_dir = conf::data_dir(request)?;
        let netns = match netns.map(NetNs::open).transpose() {
            Ok(netns) => netns,
            Err(NetNsError::Gone(_)) => None,
            Err(error) => return Err(error.into()),
        };
        restore(&data_dir, attachment, netns.as_ref())
    }

    fn check(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<(), CniError> {
        let conf = TuningConf::parse(request)?;
        prev_result(request)?;
        let netns = open_netns(request, netns)?;
        netns.run(|| {
            if !conf.change.is_empty() {
                let (_, settings) = interface(attachment)?;
                compare(&conf.change, &settings, attachment)?;
            }
            for (parameter, wanted) in &conf.sysctls {
                let found = sysctl::get(&parameter.path(attachment.ifname.as_str()))?;
                if !found.split_whitespace().eq(wanted.split_whitespace()) {
                    return Err(damaged(format!("{} is {found:?}, not {wanted:?}", parameter.written)));
                }
            }
            Ok(())
        })?
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        backup::gc(&conf::data_dir(request)?, &request.conf.name, &request.conf.valid_attachments()?)
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let conf = TuningConf::parse(request)?;
        expect_allowed(&conf, Path::new(allowlist::FILE))?;
        std::fs::create_dir_all(&conf.data_dir).map_err(|error| {
            let what = format!("dataDir: creating {}", conf.data_dir.display());
            CniError::caused(ErrorCode::NOT_AVAILABLE, what, &error)
        })
    }
}

fn expect_allowed(conf: &TuningConf, list: &Path) -> Result<(), CniError> {
    if conf.sysctls.is_empty() {
        return Ok(());
    }
    let Some(list_of) = Allowlist::load(list)? else { return Ok(()) };
    match conf.sysctls.iter().find(|(parameter, _)| !list_of.allows(&parameter.written)) {
        None => Ok(()),
        Some((parameter, _)) => {
            let problem = format!("not allowed by {}", list.display());
            Err(CniError::config(&format!("sysctl.{}", parameter.written), problem))
        }
    }
}

/// Inside the pod's namespace.
fn set_parameters(conf: &TuningConf, attachment: &Attachment) -> Result<(), CniError> {
    for (parameter, value) in &conf.sysctls {
        sysctl::set(&parameter.path(attachment.ifname.as_str()), value).map_err(|error| {
            let bare = CniError::from(error);
            CniError { msg: format!("sysctl.{}: {}", parameter.written, bare.msg), ..bare }
        })?;
    }
    Ok(())
}

/// Keeps the settings of before, then changes them.
fn change(
    request: &Request,
    conf: &TuningConf,
    attachment: &Attachment,
    netns: &NetNs,
) -> Result<(), CniError> {
    let identity = identity(netns)?;
    netns.run(|| {
        let (mut socket, settings) = interface(attachment)?;
        let before = Backup::of(&settings, &conf.change, &request.conf.name, identity);
        before.write(&backup::path(&conf.data_dir, attachment))?;
        Ok(device::apply(&mut socket, attachment.ifname.as_str(), settings.index, &conf.change)?)
    })?
}

/// Brings the settings of before back, where the interface is still there, and forgets them.
fn restore(data_dir: &Path, attachment: &Attachment, netns: Option<&NetNs>) -> Result<(), CniError> {
    let path = backup::path(data_dir, attachment);
    let before = backup::read(&path)?;
    if let (Some(before), Some(netns)) = (before, netns)
        && !netns.is_own()?
        && !before.is_foreign_to(identity(netns)?)
    {
        netns.run(|| {
            let Ok((mut socket, settings)) = interface(attachment) else { return };
            // The interface goes with the plugin that made it; what it refuses now must not keep it.
            let _ = device::apply(&mut socket, attachment.ifname.as_str(), settings.index, &before.change());
        })?;
    }
    backup::remove(&path)
}

/// Device and inode of a namespace.
fn identity(netns: &NetNs) -> Result<(u64, u64), CniError> {
    let stat = rustix::fs::fstat(netns).map_err(|errno| {
        let what = format!("looking at {}", netns.path().display());
        CniError::caused(ErrorCode::IO_FAILURE, what, &std::io::Error::from(errno))
    })?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The interface's settings, inside the pod's namespace.
fn interface(attachment: &Attachment) -> Result<(Socket, Settings), CniError> {
    let name = attachment.ifname.as_str();
    let mut socket = Socket::route()?;
    let settings = device::settings(&mut socket, name)?;
    let settings = settings.ok_or_else(|| damaged(format!("the container has no interface {name}")))?;
    Ok((socket, settings))
}

/// The first setting that is not as wanted.
fn compare(wanted: &Change, found: &Settings, attachment: &Attachment) -> Result<(), CniError> {
    let differs = |what: &str, found: &dyn std::fmt::Display, wanted: Option<String>| match wanted {
        Some(wanted) if wanted != found.to_string() => {
            Err(damaged(format!("{} has {what} {found}, not {wanted}", attachment.ifname)))
        }
        _ => Ok(()),
    };
    differs("MAC address", &found.mac, wanted.mac.map(|mac| mac.to_string()))?;
    differs("MTU", &found.mtu, wanted.mtu.map(|mtu| mtu.to_string()))?;
    differs("promiscuous mode", &found.promiscuous, wanted.promiscuous.map(|on| on.to_string()))?;
    differs("all-multicast mode", &found.all_multicast, wanted.all_multicast.map(|on| on.to_string()))?;
    differs("queue length", &found.queue, wanted.queue.map(|length| length.to_string()))
}

/// Puts what changed into the result, so that later CHECKs expect it.
fn tell(result: &mut CniResult, attachment: &Attachment, change: &Change) {
    let inside = result
        .interfaces
        .iter_mut()
        .filter(|interface| !interface.sandbox.is_empty() && interface.name == attachment.ifname.as_str());
    for interface in inside {
        if let Some(mac) = change.mac {
            interface.mac = mac.to_string();
        }
        if let Some(mtu) = change.mtu.filter(|_| interface.mtu != 0) {
            interface.mtu = mtu;
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::cni::NetConf;
    use proto::cni::plugin::OwnNetns;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_administrators_list_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("allowlist.conf");
        let conf = json!({"name": "n", "type": "tuning", "sysctl": {"net.core.somaxconn": "1"}});
        let request = Request {
            conf: NetConf::new(conf.as_object().unwrap().clone()).unwrap(),
            args: Default::default(),
            path: Vec::new(),
            own_netns: OwnNetns::Refused,
        };
        let conf = TuningConf::parse(&request).unwrap();
        let check = |expect: Option<String>| {
            let found = expect_allowed(&conf, &file).err().map(|error| error.to_string());
            assert_eq!(found, expect);
        };
        check(None);
        std::fs::write(&file, "^net.core.somaxconn$\n").unwrap();
        check(None);
        std::fs::write(&file, "^net.ipv4.\n").unwrap();
        check(Some(format!("sysctl.net.core.somaxconn: not allowed by {}", file.display())));
        std::fs::write(&file, "x\n(y)\n").unwrap();
        let problem = "groups, counts and inner anchors are not understood";
        check(Some(format!("{} line 2: {problem}", file.display())));
    }
}

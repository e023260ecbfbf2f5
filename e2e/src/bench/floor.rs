//! What the kernel itself takes for the pieces that every pod needs. No contestant can be faster; a host that is
//! busy with something else shows here first.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};
use serde::Serialize;

use super::stats::{median, quantile};
use crate::exec::Program;
use crate::ns;

/// Looks at each piece in one round.
const LOOKS: usize = 20;
/// Lower directories of the overlay.
const LOWERS: usize = 10;

/// One piece, microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Piece {
    /// What is done.
    pub name: &'static str,
    /// Each look.
    #[serde(skip)]
    looks: Vec<f64>,
    /// Smallest.
    pub min: f64,
    /// Middle.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
}

/// Looks at all pieces, in namespaces of its own, and adds to what earlier rounds saw.
pub fn look(pieces: &mut Vec<Piece>) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().to_owned();
    let found = ns::apart(move || {
        let busybox = Program::new("busybox").arg("true");
        // Protocol 0 of this family is NETLINK_ROUTE.
        let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
        let overlay = Overlay::prepare(&dir)?;
        Ok([
            ("fork, exec and wait of a static program", repeat(|_| busybox.silent())?),
            ("make a veth pair", repeat(|number| make_veth(&netlink, number))?),
            ("mount and unmount an overlay of ten layers", repeat(|_| overlay.mount_and_unmount())?),
            ("make a network namespace", repeat(|_| ns::renew_network())?),
        ])
    })?;
    for (name, looks) in found {
        match pieces.iter_mut().find(|piece| piece.name == name) {
            Some(piece) => piece.looks.extend(looks),
            None => pieces.push(Piece { name, looks, min: 0.0, p50: 0.0, p90: 0.0 }),
        }
    }
    for piece in pieces {
        piece.min = quantile(&piece.looks, 0.0);
        piece.p50 = median(&piece.looks);
        piece.p90 = quantile(&piece.looks, 0.9);
    }
    Ok(())
}

fn repeat(mut once: impl FnMut(usize) -> Result<()>) -> Result<Vec<f64>> {
    let mut looks = Vec::new();
    for number in 0..LOOKS {
        let start = Instant::now();
        once(number)?;
        looks.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(looks)
}

struct Overlay {
    options: std::ffi::CString,
    target: std::path::PathBuf,
}

impl Overlay {
    fn prepare(dir: &Path) -> Result<Self> {
        let mut lowers = Vec::new();
        for number in 0..LOWERS {
            let lower = dir.join(format!("l{number}"));
            std::fs::create_dir(&lower)?;
            lowers.push(lower.display().to_string());
        }
        for name in ["upper", "work", "root"] {
            std::fs::create_dir(dir.join(name))?;
        }
        let top = dir.display();
        let options = format!("lowerdir={},upperdir={top}/upper,workdir={top}/work", lowers.join(":"));
        Ok(Self { options: std::ffi::CString::new(options)?, target: dir.join("root") })
    }

    #[allow(clippy::disallowed_methods, reason = "what the kernel takes for a mount is measured here")]
    fn mount_and_unmount(&self) -> Result<()> {
        let options = Some(self.options.as_c_str());
        rustix::mount::mount("overlay", &self.target, "overlay", MountFlags::empty(), options)
            .context("mount an overlay")?;
        rustix::mount::unmount(&self.target, UnmountFlags::DETACH).context("unmount the overlay")
    }
}

/// RTM_NEWLINK of a veth pair (rtnetlink(7)); fails with what the kernel answers.
fn make_veth(netlink: &OwnedFd, number: usize) -> Result<()> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const VETH_INFO_PEER: u16 = 1;
    /// Length of struct ifinfomsg.
    const LINK_HEADER: usize = 16;
    let name = |side: char| attribute(IFLA_IFNAME, format!("v{side}{number}\0").as_bytes());
    let peer = attribute(VETH_INFO_PEER, &[vec![0; LINK_HEADER], name('b')].concat());
    let kind = [attribute(IFLA_INFO_KIND, b"veth"), attribute(IFLA_INFO_DATA, &peer)].concat();
    let body = [vec![0; LINK_HEADER], name('a'), attribute(IFLA_LINKINFO, &kind)].concat();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = Vec::new();
    message.extend(u32::try_from(16 + body.len())?.to_ne_bytes());
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(u16::try_from(flags)?.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    send(netlink, &message, SendFlags::empty()).context("ask for a veth pair")?;
    let mut answer = [0u8; 4096];
    let (_, length) = recv(netlink, &mut answer, RecvFlags::empty()).context("hear about a veth pair")?;
    // nlmsghdr, then the error number of NLMSG_ERROR; 0 acknowledges.
    let code = answer.get(16..20).filter(|_| length >= 20).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => bail!("make a veth pair: {}", std::io::Error::from_raw_os_error(-code)),
        None => bail!("make a veth pair: the answer is short"),
    }
}

/// A netlink attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (value.len() + 4) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_say_their_own_length() {
        let check = |value: &[u8], expect: &[u8]| assert_eq!(attribute(3, value)[2..], *expect);
        check(b"", &3u16.to_ne_bytes());
        check(b"ab\0", &[3u16.to_ne_bytes().as_slice(), b"ab\0\0"].concat());
        assert_eq!(attribute(3, b"ab\0")[..2], 7u16.to_ne_bytes());
    }
}

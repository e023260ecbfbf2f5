//! Tells when somebody took the network plugins' rules out of nf_tables, or altered them: `nft flush ruleset`, a
//! firewall's restart.
//!
//! The kernel announces every transaction, and who made it. What plugins remove themselves is no loss.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::unix::AsyncFd;

/// The multicast group of nf_tables, as a mask.
const GROUP: u32 = 1 << 6;
const SUBSYSTEM: u16 = 10;
const BUFFER: usize = 64 << 10;
const HEADER: usize = 20;

const NEW_TABLE: u16 = 0;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DEL_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DEL_RULE: u16 = 8;
const DEL_SET: u16 = 11;
const DEL_ELEMENT: u16 = 14;
const NEW_GENERATION: u16 = 15;

/// What the plugins' processes are called.
const PLUGINS: [&str; 8] =
    ["cni-bridge", "bridge", "ptp", "portmap", "firewall", "macvlan", "ipvlan", "vlan"];
/// Beginning of the names of the plugins' tables.
const TABLES: &str = "berth_";
/// The table of `iptables` where rules of the plugins are, and their chains in it.
const FILTER: (&str, [&str; 2]) = ("filter", ["FORWARD", "CNI-FORWARD"]);

/// The kernel's announcements in the network namespace that it was opened in.
#[derive(Debug)]
pub struct LostRules {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    transaction: Transaction,
}

/// What was announced of a transaction so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Transaction {
    takes: bool,
}

impl LostRules {
    /// Listens from now on.
    ///
    /// # Errors
    /// Where the kernel has no nf_tables, or the privilege is missing.
    pub fn watch() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and lives in the `AsyncFd`.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { socket, buffer: vec![0; BUFFER], transaction: Transaction::default() })
    }

    /// Returns when rules may be lost. May be dropped and called again.
    ///
    /// # Errors
    /// Of the socket.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let received =
                ready.try_io(|socket| Ok(recv(socket.get_ref(), &mut self.buffer[..], RecvFlags::empty())?));
            match received {
                Err(_would_block) => {}
                Ok(Ok((length, _))) => {
                    if self.transaction.read(&self.buffer[..length.min(BUFFER)]) {
                        return Ok(());
                    }
                }
                // Announcements were dropped: anything may have been among them.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Passes over what was announced until now.
    pub fn catch_up(&mut self) {
        while let Ok((1.., _)) = recv(self.socket.get_ref(), &mut self.buffer[..], RecvFlags::empty()) {}
        self.transaction = Transaction::default();
    }
}

impl Transaction {
    /// Reads a datagram; says whether a transaction of somebody else that took something ended in it.
    fn read(&mut self, datagram: &[u8]) -> bool {
        let (mut lost, mut rest) = (false, datagram);
        while let Some((kind, body, next)) = message(rest) {
            rest = next;
            if kind >> 8 != SUBSYSTEM {
                continue;
            }
            match kind & 0xff {
                NEW_GENERATION => {
                    let by = attribute(body, 3).map(text).unwrap_or_default();
                    lost |= self.takes && !PLUGINS.contains(&by);
                    self.takes = false;
                }
                kind => self.takes |= takes(kind, body),
            }
        }
        lost
    }
}

/// Whether a message takes or alters something of the plugins', or makes a chain that their rules belong in.
fn takes(kind: u16, body: &[u8]) -> bool {
    let Some(table) = attribute(body, 1).map(text) else { return false };
    let chain = |number: u16| attribute(body, number).map(text).unwrap_or_default();
    let (filter, chains) = FILTER;
    match kind {
        DEL_TABLE => table.starts_with(TABLES) || table == filter,
        NEW_TABLE | NEW_RULE | DEL_SET | DEL_ELEMENT => table.starts_with(TABLES),
        DEL_RULE => table.starts_with(TABLES) || (table == filter && chains.contains(&chain(2))),
        DEL_CHAIN => table.starts_with(TABLES) || (table == filter && chains.contains(&chain(3))),
        NEW_CHAIN => table.starts_with(TABLES) || (table == filter && chain(3) == chains[0]),
        _ => false,
    }
}

/// Type, attributes, and what follows of the first message.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap_or_default().trim_end_matches('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, attributes: &[(u16, &str)]) -> Vec<u8> {
        let mut body = vec![1, 0, 0, 0];
        for (number, value) in attributes {
            body.extend((value.len() as u16 + 5).to_ne_bytes());
            body.extend(number.to_ne_bytes());
            body.extend(value.as_bytes());
            body.push(0);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = (body.len() as u32 + 16).to_ne_bytes().to_vec();
        message.extend((SUBSYSTEM << 8 | kind).to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    #[test]
    fn only_what_others_take_of_the_plugins_is_lost() {
        let check = |what: Vec<u8>, by: &str, expect: bool| {
            let end = message(NEW_GENERATION, &[(1, "abc"), (3, by)]);
            let mut transaction = Transaction::default();
            assert_eq!(transaction.read(&[what.clone(), end.clone()].concat()), expect, "{by}");
            // The same in two datagrams; nothing stays for the next transaction.
            assert!(!transaction.read(&what));
            assert_eq!(transaction.read(&end), expect);
            assert!(!transaction.read(&end));
        };
        let of = |kind: u16, table: &str| message(kind, &[(1, table)]);
        check(of(DEL_TABLE, "berth_portmap"), "nft", true);
        check(of(DEL_TABLE, "berth_portmap"), "portmap", false);
        check(of(DEL_TABLE, "berth_portmap"), "cni-bridge", false);
        check(of(DEL_TABLE, "other"), "nft", false);
        check(of(DEL_ELEMENT, "berth_masquerade"), "nft", true);
        check(of(DEL_SET, "berth_masquerade"), "nft", true);
        check(of(DEL_ELEMENT, "filter"), "nft", false);
        check(of(DEL_TABLE, "filter"), "nft", true);
        check(message(DEL_RULE, &[(1, "filter"), (2, "FORWARD")]), "iptables", true);
        check(message(DEL_RULE, &[(1, "filter"), (2, "INPUT")]), "iptables", false);
        check(message(DEL_CHAIN, &[(1, "filter"), (3, "CNI-FORWARD")]), "iptables", true);
        check(message(NEW_CHAIN, &[(1, "filter"), (3, "FORWARD")]), "dockerd", true);
        check(message(NEW_CHAIN, &[(1, "berth_portmap"), (3, "publish")]), "nft", true);
        check(message(NEW_CHAIN, &[(1, "other"), (3, "FORWARD")]), "nft", false);
        check(of(NEW_TABLE, "berth_portmap"), "nft", true);
        check(of(NEW_RULE, "berth_portmap"), "nft", true);
        check(of(NEW_RULE, "berth_portmap"), "portmap", false);
        check(of(NEW_RULE, "filter"), "nft", false);
    }

    #[test]
    fn rubbish_is_nothing() {
        let mut transaction = Transaction::default();
        let whole = message(DEL_TABLE, &[(1, "berth_portmap")]);
        for length in 0..whole.len() {
            assert!(!transaction.read(&whole[..length]));
            assert!(!Transaction::default().read(&vec![0xff; length]));
            assert!(!Transaction::default().read(&vec![0; length]));
        }
    }
}

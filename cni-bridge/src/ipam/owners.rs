//! Who holds which addresses: a file per attachment in the directory `.owners` of a store, so that nobody has to read
//! all reservations to find one's own. The reference plugin ignores them; the reservations themselves decide.
//!
//! It also says in which boot and for which network namespace the addresses were given: what an earlier boot gave is
//! free again, because no namespace has survived that.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use proto::cni::Attachment;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::net::netns::Identity;

/// The directory in the store.
pub const OWNERS: &str = ".owners";

/// The files of one store.
#[derive(Debug)]
pub struct Owners<'a> {
    store: &'a OwnedFd,
}

/// What an attachment's file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// The boot.
    pub boot: String,
    /// The network namespace.
    pub netns: Option<Identity>,
    /// Addresses that it may hold.
    pub addresses: Vec<IpAddr>,
}

impl<'a> Owners<'a> {
    /// Those of the store whose directory is given.
    pub fn new(store: &'a OwnedFd) -> Self {
        Self { store }
    }

    /// Writes what an attachment is about to hold.
    ///
    /// # Errors
    /// Of the file; so for all here.
    pub fn write(&self, attachment: &Attachment, held: &Held) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let path = path(&file_name(attachment));
        let open = || rustix::fs::openat(self.store, &path, flags, Mode::from_raw_mode(0o644));
        let file = match open() {
            Err(Errno::NOENT) => match rustix::fs::mkdirat(self.store, OWNERS, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => open()?,
                Err(errno) => return Err(errno.into()),
            },
            other => other?,
        };
        std::fs::File::from(file).write_all(held.to_text().as_bytes())
    }

    /// What an attachment's file says; `None` where there is none, or nothing in it.
    pub fn read(&self, attachment: &Attachment) -> io::Result<Option<Held>> {
        self.read_file(&file_name(attachment))
    }

    /// Removes an attachment's file.
    pub fn remove(&self, attachment: &Attachment) -> io::Result<()> {
        match rustix::fs::unlinkat(self.store, path(&file_name(attachment)), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// All files.
    pub fn all(&self) -> io::Result<Vec<(Attachment, Held)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(self.store, OWNERS, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((container, ifname)) = name.split_once('@') else { continue };
            if let (Ok(container_id), Ok(ifname)) = (container.parse(), ifname.parse()) {
                let held = self.read_file(&name)?.unwrap_or_default();
                found.push((Attachment { container_id, ifname }, held));
            }
        }
        Ok(found)
    }

    fn read_file(&self, name: &str) -> io::Result<Option<Held>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match rustix::fs::openat(self.store, path(name), flags, Mode::empty()) {
            Ok(fd) => {
                let mut text = String::with_capacity(512);
                std::fs::File::from(fd).take(64 << 10).read_to_string(&mut text)?;
                Ok(Held::parse(&text))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Held {
    fn to_text(&self) -> String {
        let mut text = format!("boot {}\n", self.boot);
        if let Some(netns) = self.netns {
            text.push_str(&format!("netns {} {}\n", netns.dev, netns.ino));
        }
        self.addresses.iter().for_each(|address| text.push_str(&format!("address {address}\n")));
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut held = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["boot", boot] => held.boot = boot.to_owned(),
                ["netns", dev, ino] => {
                    let numbers = dev.parse().ok().zip(ino.parse().ok());
                    held.netns = numbers.map(|(dev, ino)| Identity { dev, ino });
                }
                ["address", address] => held.addresses.extend(address.parse::<IpAddr>().ok()),
                _ => {}
            }
        }
        (!held.boot.is_empty()).then_some(held)
    }
}

/// The names of containers hold no `@`.
fn file_name(attachment: &Attachment) -> String {
    format!("{}@{}", attachment.container_id, attachment.ifname)
}

fn path(name: &str) -> String {
    format!("{OWNERS}/{name}")
}

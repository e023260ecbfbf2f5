//! One layer: a deterministic tar stream and its compressed form. Can also say what no honest archive says.

use std::io::Write;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// How a layer is compressed on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip, the usual form.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Owner and mode of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// Permission bits, set-id bits included.
    pub mode: u32,
    /// User id.
    pub uid: u64,
    /// Group id.
    pub gid: u64,
}

impl Owner {
    /// Root's, with that mode.
    #[must_use]
    pub const fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0 }
    }
}

/// A layer ready for a registry.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Digest of the uncompressed stream.
    pub diff_id: String,
    /// Compressed bytes.
    pub blob: Vec<u8>,
    /// How they are compressed.
    pub compression: Compression,
}

/// Collects entries in order.
pub struct Archive {
    tar: tar::Builder<Vec<u8>>,
    failure: Option<std::io::Error>,
}

impl Default for Archive {
    fn default() -> Self {
        Self { tar: tar::Builder::new(Vec::new()), failure: None }
    }
}

impl Archive {
    /// A directory.
    #[must_use]
    pub fn dir(self, name: &str, owner: Owner) -> Self {
        self.entry(name, EntryType::Directory, owner, &[])
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, name: &str, owner: Owner, content: &[u8]) -> Self {
        self.entry(name, EntryType::Regular, owner, content)
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.link(name, EntryType::Symlink, target)
    }

    /// A hard link to an earlier entry.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(name, EntryType::Link, target)
    }

    /// A character device.
    #[must_use]
    pub fn device(mut self, name: &str, major: u32, minor: u32) -> Self {
        let mut header = header(name, EntryType::Char, Owner::root(0o666), 0);
        let set = header.set_device_major(major).and_then(|()| header.set_device_minor(minor));
        self.failure = self.failure.or(set.err());
        self.append(header, &[])
    }

    /// Ends the stream and compresses it.
    pub fn finish(mut self, compression: Compression) -> Result<Layer> {
        if let Some(failure) = self.failure.take() {
            return Err(failure).context("write a layer");
        }
        let raw = self.tar.into_inner()?;
        let blob = match compression {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                encoder.write_all(&raw)?;
                encoder.finish()?
            }
            Compression::Zstd => zstd::encode_all(raw.as_slice(), 3)?,
        };
        Ok(Layer { diff_id: digest(&raw), blob, compression })
    }

    fn entry(self, name: &str, kind: EntryType, owner: Owner, content: &[u8]) -> Self {
        let header = header(name, kind, owner, content.len() as u64);
        self.append(header, content)
    }

    fn link(mut self, name: &str, kind: EntryType, target: &str) -> Self {
        let mut header = header(name, kind, Owner::root(0o777), 0);
        self.failure = self.failure.or(header.set_link_name_literal(target).err());
        self.append(header, &[])
    }

    fn append(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.failure = self.failure.or(self.tar.append(&header, content).err());
        self
    }
}

/// A header whose name is taken literally: no checks, so that a test can write `../` too. At most 100 bytes.
fn header(name: &str, kind: EntryType, owner: Owner, size: u64) -> Header {
    let mut header = Header::new_ustar();
    let field = &mut header.as_old_mut().name;
    let length = name.len().min(field.len());
    field[..length].copy_from_slice(&name.as_bytes()[..length]);
    header.set_entry_type(kind);
    header.set_mode(owner.mode);
    header.set_uid(owner.uid);
    header.set_gid(owner.gid);
    header.set_size(size);
    header.set_mtime(1_700_000_000);
    header
}

/// `sha256:<hex>` of the bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        let make = || Archive::default().dir("a", Owner::root(0o755)).file("a/b", Owner::root(0o4755), b"x");
        let (one, two) =
            (make().finish(Compression::Gzip).unwrap(), make().finish(Compression::Gzip).unwrap());
        assert_eq!((one.diff_id, one.blob), (two.diff_id, two.blob));
    }

    #[test]
    fn names_are_taken_literally() {
        let layer =
            Archive::default().file("../x", Owner::root(0o644), b"").finish(Compression::Zstd).unwrap();
        let raw = zstd::decode_all(layer.blob.as_slice()).unwrap();
        assert_eq!(&raw[..5], b"../x\0");
    }
}

//! Which addresses of a range set nobody has had yet: in the file `.given.<set>` of the store, the position from which
//! on none was given, and the address that was given last.
//!
//! Notes begin in a store that nobody has used. Another plugin that gives addresses of the set moves its last one on
//! disk, and what the ranges are is in the notes too: whenever these do not fit, nothing is known of any address again.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::FileExt;

/// What is known of an address before it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// Nobody had it.
    Unused,
    /// Somebody may have had it.
    Unknown,
}

const LENGTH: usize = 32;
/// Instead of a position: nothing is known.
const NONE: u64 = u64::MAX;

/// The notes of one set.
#[derive(Debug)]
pub struct Given {
    file: File,
    fingerprint: u64,
}

impl Given {
    /// The notes in `file`, which is open for reading and writing, of the set that `ranges` describes.
    pub fn new(file: File, ranges: &str) -> Self {
        Self { file, fingerprint: fingerprint(ranges) }
    }

    /// Whether there are notes, of whatever ranges.
    ///
    /// # Errors
    /// Of the file; so for all here.
    pub fn has_begun(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() >= LENGTH as u64)
    }

    /// Begins in a store that nobody has used, or in one of which nothing is known.
    pub fn begin(&self, past: Past) -> io::Result<()> {
        self.write(if past == Past::Unused { 0 } else { NONE }, None)
    }

    /// Notes that the address at `position` is given, and that `before` was the last one on disk.
    pub fn pass(&self, before: Option<IpAddr>, address: IpAddr, position: u64) -> io::Result<Past> {
        let mut bytes = [0; LENGTH];
        let is_whole = match self.file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            read => read.is_ok(),
        };
        let expected = [&self.fingerprint.to_ne_bytes()[..], &octets(before)].concat();
        let fits = is_whole && bytes[..8] == expected[..8] && bytes[16..] == expected[8..];
        let unused_from = bytes[8..16].try_into().map_or(NONE, u64::from_ne_bytes);
        let unused_from = if fits { unused_from } else { NONE };
        self.write(unused_from.max(position.saturating_add(1)), Some(address))?;
        Ok(if unused_from != NONE && position >= unused_from { Past::Unused } else { Past::Unknown })
    }

    fn write(&self, unused_from: u64, last: Option<IpAddr>) -> io::Result<()> {
        let words = [self.fingerprint.to_ne_bytes(), unused_from.to_ne_bytes()].concat();
        self.file.write_all_at(&[&words[..], &octets(last)].concat(), 0)
    }
}

fn octets(address: Option<IpAddr>) -> [u8; 16] {
    let wide = match address {
        None => Ipv6Addr::UNSPECIFIED,
        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped(),
        Some(IpAddr::V6(v6)) => v6,
    };
    wide.octets()
}

/// Tells notes of other ranges apart.
fn fingerprint(ranges: &str) -> u64 {
    ranges.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

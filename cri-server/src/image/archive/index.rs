//! The members of an archive file by name, so that they can be read in any order. Holds positions, not contents.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::image::digest::Digest;
use crate::image::error::ImageError;
use crate::image::unpack::tar::{Kind, TarStream};
use crate::image::unpack::tree::clean;
use crate::image::unpack::{BlobSink, Limits};

const CHUNK: usize = 256 << 10;
/// Most members: an image has a few hundred.
const MAX_MEMBERS: usize = 100_000;

/// A part of the archive file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub size: u64,
}

/// An archive file and what is where in it.
pub struct Index {
    file: File,
    members: HashMap<PathBuf, Member>,
    /// Docker writes a layer that occurs again as a link to the first.
    links: HashMap<PathBuf, PathBuf>,
}

impl Index {
    /// Reads the headers of an uncompressed archive.
    pub fn read(file: File) -> Result<Self, ImageError> {
        let fail = |e| ImageError::io("reading an archive", e);
        let limits = Limits { bytes: u64::MAX / 4, ..Limits::default() };
        let size = file.metadata().map_err(fail)?.len();
        let reader = file.try_clone().map_err(fail)?;
        let mut stream = TarStream::new(BufReader::with_capacity(64 << 10, reader), &limits);
        let (mut members, mut links) = (HashMap::new(), HashMap::new());
        while let Some(entry) = stream.next_entry()? {
            let path = clean(&entry.path);
            match entry.kind {
                Kind::File(None) => {
                    let member = Member { offset: stream.position(), size: entry.size };
                    if member.offset.saturating_add(member.size) > size {
                        return Err(ImageError::invalid("an archive is truncated"));
                    }
                    members.insert(path, member);
                    let skip = i64::try_from(stream.left()).unwrap_or(i64::MAX);
                    stream.input_mut().seek_relative(skip).map_err(fail)?;
                    stream.skipped_data();
                }
                Kind::Symlink(target) | Kind::HardLink(target) => {
                    let beside = path.parent().map(PathBuf::from).unwrap_or_default();
                    let target = beside.join(OsStr::from_bytes(&target));
                    links.insert(path, clean(target.as_os_str().as_bytes()));
                }
                _ => {}
            }
            if members.len() + links.len() > MAX_MEMBERS {
                return Err(ImageError::invalid(format!("an archive has more than {MAX_MEMBERS} members")));
            }
        }
        Ok(Self { file, members, links })
    }

    /// Where a member is.
    pub fn find(&self, name: &str) -> Option<Member> {
        let path = clean(name.as_bytes());
        let path = self.links.get(&path).unwrap_or(&path);
        self.members.get(path).copied()
    }

    /// A blob of an OCI layout.
    pub fn blob(&self, digest: &Digest) -> Result<Member, ImageError> {
        let found = self.find(&format!("blobs/sha256/{}", digest.hex()));
        found.ok_or_else(|| ImageError::invalid(format!("the archive has no blob {digest}")))
    }

    /// A member in memory.
    pub fn bytes(&self, member: Member, limit: u64) -> Result<Vec<u8>, ImageError> {
        if member.size > limit {
            return Err(ImageError::invalid(format!(
                "a document in the archive is larger than {limit} bytes"
            )));
        }
        let mut bytes = vec![0; usize::try_from(member.size).unwrap_or(usize::MAX)];
        self.file
            .read_exact_at(&mut bytes, member.offset)
            .map_err(|e| ImageError::io("reading an archive", e))?;
        Ok(bytes)
    }

    /// A blob in memory, checked.
    pub fn blob_bytes(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImageError> {
        let bytes = self.bytes(self.blob(digest)?, limit)?;
        if Digest::of(&bytes) != *digest {
            return Err(ImageError::invalid(format!("blob {digest} of the archive has another digest")));
        }
        Ok(bytes)
    }

    /// Sends a member to an unpacker, until it wants no more.
    pub fn send(&self, member: Member, sink: &BlobSink) -> Result<(), ImageError> {
        let mut done = 0;
        while done < member.size {
            let mut piece = vec![0; usize::try_from(member.size - done).unwrap_or(CHUNK).min(CHUNK)];
            self.file
                .read_exact_at(&mut piece, member.offset + done)
                .map_err(|e| ImageError::io("reading an archive", e))?;
            done += piece.len() as u64;
            if sink.blocking_send(piece.into()).is_err() {
                break;
            }
        }
        Ok(())
    }
}

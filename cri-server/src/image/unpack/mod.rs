//! One layer: compressed blob → verified directory. Blocking; knows no registry and no store.
//!
//! Two threads per layer: one receives, hashes and inflates, the other hashes the archive and writes the files. They
//! are joined by a few large buffers, so a layer of any size takes the same memory.

pub mod attributes;
pub mod blob;
pub mod copy;
pub mod duplicate;
pub mod extract;
pub mod graft;
mod header;
mod inflate;
pub mod limits;
pub mod merged;
pub mod pax;
mod stored;
pub mod tar;
pub mod tree;

use std::path::Path;

pub use blob::{BlobReader, BlobSink, Closed, channel};
pub use extract::{Needs, PendingLink, Usage};
pub use inflate::ExpectedBlob;
pub use limits::Limits;

use super::digest::Digest;
use super::error::ImageError;
use extract::Extractor;
use inflate::{inflate, pipe};
use tar::TarStream;

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// What the layer leaves to the layers below it.
    pub needs: Needs,
    /// What it takes on disk.
    pub usage: Usage,
}

/// Unpacks `blob` into the empty directory `directory`; succeeds only if the blob is the expected one and its archive
/// is complete. On failure the directory is left in any state.
pub fn unpack(
    blob: BlobReader,
    expected: &ExpectedBlob,
    directory: &Path,
    limits: &Limits,
) -> Result<Unpacked, ImageError> {
    std::thread::scope(|scope| {
        let (writer, reader) = pipe();
        let thread = std::thread::Builder::new().name("inflate".into());
        thread
            .spawn_scoped(scope, move || inflate(blob, expected, writer, limits))
            .map_err(|e| ImageError::io("starting a thread", e))?;
        let mut extractor = Extractor::new(directory, limits)?;
        let reader = extractor.unpack(TarStream::new(reader, limits))?;
        let (needs, usage) = extractor.finish()?;
        Ok(Unpacked { diff_id: reader.digest(), needs, usage })
    })
}

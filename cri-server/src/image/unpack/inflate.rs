//! Compressed layer → archive bytes, on a thread of its own, so that inflating and unpacking overlap.
//!
//! The compression is told by the content, not by the media type: registries hold gzip under every name, and the
//! diff-id decides in the end. Bounds: uncompressed size, ratio, zstd window.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use flate2::bufread::MultiGzDecoder;

use super::blob::BlobReader;
use super::limits::Limits;
use crate::image::digest::{Digest, Hasher};
use crate::image::error::ImageError;

const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 4;

/// What the compressed bytes must be, where that is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExpectedBlob {
    /// Their digest.
    pub digest: Option<Digest>,
    /// Their number.
    pub size: Option<u64>,
}

enum Decoder {
    Plain(BlobReader),
    Gzip(Box<MultiGzDecoder<BlobReader>>),
    Zstd(Box<zstd::Decoder<'static, BlobReader>>),
}

impl Decoder {
    fn new(mut blob: BlobReader, limits: &Limits) -> io::Result<Self> {
        let magic = blob.peek(4);
        Ok(match &magic[..] {
            [0x1f, 0x8b, ..] => Decoder::Gzip(Box::new(MultiGzDecoder::new(blob))),
            // A frame, or one of the skippable frames that seekable variants begin with.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                let mut decoder = zstd::Decoder::with_buffer(blob)?;
                decoder.window_log_max(limits.window_log)?;
                Decoder::Zstd(Box::new(decoder))
            }
            _ => Decoder::Plain(blob),
        })
    }

    fn blob(&mut self) -> &mut BlobReader {
        match self {
            Decoder::Plain(blob) => blob,
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut(),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(blob) => blob.read(into),
            Decoder::Gzip(decoder) => decoder.read(into),
            Decoder::Zstd(decoder) => decoder.read(into),
        }
    }
}

/// Inflates `blob` into `pipe` until its end, then checks that it was the expected one.
pub fn inflate(blob: BlobReader, expected: &ExpectedBlob, pipe: PipeWriter, limits: &Limits) {
    let result = run(blob, expected, &pipe, limits);
    if let Err(error) = result {
        pipe.fail(error);
    }
}

fn run(
    blob: BlobReader,
    expected: &ExpectedBlob,
    pipe: &PipeWriter,
    limits: &Limits,
) -> Result<(), ImageError> {
    let corrupt = |error| ImageError::corrupt("a layer cannot be decompressed", error);
    let mut decoder = Decoder::new(blob, limits).map_err(corrupt)?;
    let mut total = 0;
    loop {
        let mut chunk = pipe.buffer();
        let mut filled = 0;
        while filled < chunk.len() {
            match decoder.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) => return Err(corrupt(error)),
            }
        }
        if filled == 0 {
            break;
        }
        total += filled as u64;
        check_growth(total, decoder.blob().count(), limits)?;
        chunk.truncate(filled);
        if pipe.send(chunk).is_err() {
            return Ok(());
        }
    }
    check_blob(decoder.blob(), expected)
}

fn check_growth(total: u64, compressed: u64, limits: &Limits) -> Result<(), ImageError> {
    if total > limits.bytes {
        return Err(ImageError::invalid(format!("a layer has more than {} bytes", limits.bytes)));
    }
    if total > limits.ratio_floor && total / limits.ratio > compressed {
        return Err(ImageError::invalid(format!(
            "a layer inflates to more than {} times its size",
            limits.ratio
        )));
    }
    Ok(())
}

fn check_blob(blob: &mut BlobReader, expected: &ExpectedBlob) -> Result<(), ImageError> {
    while !blob.fill_buf().map_err(|e| ImageError::corrupt("a layer cannot be read", e))?.is_empty() {
        let length = blob.peek(CHUNK).len();
        blob.consume(length);
    }
    if expected.size.is_some_and(|size| size != blob.count()) {
        let what = format!("a layer has {} bytes, not {}", blob.count(), expected.size.unwrap_or_default());
        return Err(ImageError::invalid(what));
    }
    match expected.digest {
        Some(digest) if digest != blob.digest() => {
            Err(ImageError::invalid(format!("a layer has digest {}, not {digest}", blob.digest())))
        }
        _ => Ok(()),
    }
}

/// The inflating end of a pipe between two threads; buffers travel back and are used again.
pub struct PipeWriter {
    chunks: SyncSender<Result<Vec<u8>, ImageError>>,
    spare: Receiver<Vec<u8>>,
}

/// The unpacking end: hashes and counts the archive.
pub struct PipeReader {
    chunks: Receiver<Result<Vec<u8>, ImageError>>,
    spare: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    hasher: Hasher,
}

/// Both ends of a new pipe.
pub fn pipe() -> (PipeWriter, PipeReader) {
    let (chunks, receiver) = sync_channel(CHUNKS);
    let (spare, spares) = channel();
    let writer = PipeWriter { chunks, spare: spares };
    let (current, hasher) = (Vec::new(), Hasher::default());
    (writer, PipeReader { chunks: receiver, spare, current, position: 0, hasher })
}

impl PipeWriter {
    fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.resize(CHUNK, 0);
        buffer
    }

    fn send(&self, chunk: Vec<u8>) -> Result<(), ()> {
        self.chunks.send(Ok(chunk)).map_err(|_| ())
    }

    fn fail(&self, error: ImageError) {
        // The reader may be gone; then it has an error of its own.
        let _ = self.chunks.send(Err(error));
    }
}

impl PipeReader {
    /// Digest of everything read: the diff-id once the end is reached.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len() {
            let used = std::mem::take(&mut self.current);
            self.position = 0;
            if used.capacity() > 0 {
                // The writer may have ended; then nobody needs the buffer.
                let _ = self.spare.send(used);
            }
            // A writer that is gone without an error has sent everything.
            if let Ok(chunk) = self.chunks.recv() {
                self.current = chunk?;
                self.hasher.update(&self.current);
            }
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
    }
}

impl Read for PipeReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

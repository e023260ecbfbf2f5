//! The compressed bytes of a layer on their way from an async source to the blocking unpacker.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::image::digest::{Digest, Hasher};

/// Pieces that wait between source and unpacker: bounds the memory of a pull.
const QUEUE: usize = 16;

/// Where a source puts the bytes of a blob. Dropping it ends the blob.
pub struct BlobSink(mpsc::Sender<Bytes>);

/// The unpacker is gone; its own error says why.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl BlobSink {
    /// Adds bytes; waits while the unpacker is behind.
    pub async fn send(&self, piece: Bytes) -> Result<(), Closed> {
        self.0.send(piece).await.map_err(|_| Closed)
    }

    /// The same from a thread that may block.
    pub fn blocking_send(&self, piece: Bytes) -> Result<(), Closed> {
        self.0.blocking_send(piece).map_err(|_| Closed)
    }
}

/// A sink and the reader of what is put there.
pub fn channel() -> (BlobSink, BlobReader) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let reader = BlobReader { pieces: receiver, current: Bytes::new(), count: 0, hasher: Hasher::default() };
    (BlobSink(sender), reader)
}

/// Reads a blob, counts and hashes it. Must be used on a thread that may block.
pub struct BlobReader {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
    count: u64,
    hasher: Hasher,
}

impl BlobReader {
    /// Bytes received so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Digest of all bytes received.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Up to `length` bytes from the start of what is unread, without consuming them.
    pub fn peek(&mut self, length: usize) -> Bytes {
        while self.current.len() < length {
            let Some(piece) = self.receive() else { break };
            self.current = [std::mem::take(&mut self.current), piece].concat().into();
        }
        self.current.slice(..length.min(self.current.len()))
    }

    fn receive(&mut self) -> Option<Bytes> {
        let piece = self.pieces.blocking_recv()?;
        self.count += piece.len() as u64;
        self.hasher.update(&piece);
        Some(piece)
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.receive() {
                Some(piece) => self.current = piece,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

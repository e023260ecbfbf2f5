//! A client for tests: it writes any frame and shows what comes back.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{Head, Opcode, apply_mask};
use crate::streaming::mux::Part;

const MASK: [u8; 4] = [7, 77, 177, 27];

/// The client.
pub struct Client<R, W> {
    read: R,
    write: W,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    pub fn new((read, write): (R, W)) -> Self {
        Self { read, write }
    }

    pub async fn send(&mut self, opcode: Opcode, part: Part, payload: &[u8]) {
        let length = payload.len() as u64;
        let mut buffer = BytesMut::new();
        let last = part == Part::Last;
        Head { opcode, last, mask: Some(MASK), length }.put(&mut buffer);
        let start = buffer.len();
        buffer.extend_from_slice(payload);
        apply_mask(MASK, 0, &mut buffer[start..]);
        self.raw(&buffer).await;
    }

    /// A server that has closed the connection is noticed by reading.
    pub async fn raw(&mut self, bytes: &[u8]) {
        let _closed = self.write.write_all(bytes).await;
    }

    /// The next frame; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<(Opcode, Bytes)> {
        let mut first = [0; 2];
        self.read.read_exact(&mut first).await.ok()?;
        let mut rest = vec![0; Head::rest(first)];
        self.read.read_exact(&mut rest).await.ok()?;
        let head = Head::parse(first, &rest).unwrap();
        assert_eq!((head.mask, head.last), (None, true), "a server does not mask");
        let mut payload = vec![0; head.length as usize];
        self.read.read_exact(&mut payload).await.ok()?;
        Some((head.opcode, payload.into()))
    }

    /// Messages until the server closes, and the code that it closes with.
    pub async fn drain(&mut self) -> (Vec<Bytes>, u16) {
        let mut messages = Vec::new();
        loop {
            match self.next().await.expect("the server says why it closes") {
                (Opcode::Close, code) => {
                    let code = u16::from_be_bytes(code[..].try_into().unwrap());
                    self.send(Opcode::Close, Part::Last, &code.to_be_bytes()).await;
                    assert_eq!(self.next().await, None, "nothing follows a close frame");
                    return (messages, code);
                }
                (Opcode::Text | Opcode::Binary, payload) => messages.push(payload),
                _control => {}
            }
        }
    }
}

//! A client for tests: it writes any frame, in any order, and shows what comes back.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{Control, HEAD, Head, put_content_head};
use super::headers::{Deflater, Inflater};
use crate::streaming::mux::Part;

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// A control frame.
    Control(Control),
    /// Bytes of a stream, and whether they are the last.
    Content(u32, Bytes, Part),
}

/// The client.
pub struct Client<R, W> {
    read: R,
    write: W,
    deflater: Deflater,
    inflater: Inflater,
    next: u32,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    pub fn new((read, write): (R, W)) -> Self {
        Self { read, write, deflater: Deflater::new(), inflater: Inflater::new(), next: 1 }
    }

    /// Opens a stream; the reply is not waited for.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        self.open_as(id, headers).await;
        id
    }

    pub async fn open_as(&mut self, id: u32, headers: &[(&str, &str)]) {
        let block = self.deflater.block(headers);
        self.control(&Control::SynStream { id, part: Part::Middle, block }).await;
    }

    pub async fn control(&mut self, control: &Control) {
        let mut buffer = BytesMut::new();
        control.put(&mut buffer);
        self.raw(&buffer).await;
    }

    pub async fn send(&mut self, id: u32, bytes: &[u8], part: Part) {
        let mut buffer = BytesMut::new();
        put_content_head(id, part, bytes.len(), &mut buffer);
        buffer.extend_from_slice(bytes);
        self.raw(&buffer).await;
    }

    /// A server that has closed the connection is noticed by reading.
    pub async fn raw(&mut self, bytes: &[u8]) {
        let _closed = self.write.write_all(bytes).await;
    }

    /// The next frame; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<Said> {
        let mut head = [0; HEAD];
        self.read.read_exact(&mut head).await.ok()?;
        let (Head::Control { length, .. } | Head::Content { length, .. }) = Head::parse(head);
        let mut payload = vec![0; length];
        self.read.read_exact(&mut payload).await.ok()?;
        match Head::parse(head) {
            Head::Content { id, part, .. } => Some(Said::Content(id, payload.into(), part)),
            Head::Control { kind, version, flags, .. } => {
                let control = Control::parse(kind, version, flags, payload.into()).unwrap();
                if let Control::SynReply { block, .. } = &control {
                    assert_eq!(self.inflater.block(block), Ok(BTreeMap::new()));
                }
                Some(Said::Control(control))
            }
        }
    }

    /// The next frame that is no update of a window.
    pub async fn next_but_credit(&mut self) -> Option<Said> {
        loop {
            match self.next().await {
                Some(Said::Control(Control::WindowUpdate { .. })) => {}
                said => return said,
            }
        }
    }

    /// Everything that is said on these streams until all have ended, and how each has ended: true by its end, false by
    /// a reset.
    pub async fn drain(&mut self, ids: &[u32]) -> BTreeMap<u32, (String, bool)> {
        let mut texts: BTreeMap<u32, Vec<u8>> = ids.iter().map(|id| (*id, Vec::new())).collect();
        let mut ended = BTreeMap::new();
        while ended.len() < texts.len() {
            match self.next().await.expect("the streams end before the connection") {
                Said::Content(id, bytes, part) => {
                    if let Some(text) = texts.get_mut(&id) {
                        text.extend_from_slice(&bytes);
                        if part == Part::Last {
                            ended.insert(id, true);
                        }
                    }
                }
                Said::Control(Control::RstStream { id, .. }) if texts.contains_key(&id) => {
                    ended.insert(id, false);
                }
                Said::Control(_) => {}
            }
        }
        let text = |(id, text)| (id, (String::from_utf8(text).unwrap(), ended[&id]));
        texts.into_iter().map(text).collect()
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// Sends everything on one stream while reading another one to its end.
    pub async fn exchange(&mut self, to: u32, sent: &[u8], from: u32) -> Vec<u8> {
        let mut frame = BytesMut::new();
        put_content_head(to, Part::Last, sent.len(), &mut frame);
        frame.extend_from_slice(sent);
        let (read, write) = (&mut self.read, &mut self.write);
        let receive = async {
            let mut received = Vec::new();
            loop {
                let mut head = [0; HEAD];
                read.read_exact(&mut head).await.unwrap();
                let (Head::Control { length, .. } | Head::Content { length, .. }) = Head::parse(head);
                let mut payload = vec![0; length];
                read.read_exact(&mut payload).await.unwrap();
                match Head::parse(head) {
                    Head::Control { kind: 3, .. } => panic!("a stream was reset"),
                    Head::Content { id, part, .. } if id == from => {
                        received.extend(payload);
                        if part == Part::Last {
                            return received;
                        }
                    }
                    _other => {}
                }
            }
        };
        let (received, sent) = tokio::join!(receive, write.write_all(&frame));
        sent.unwrap();
        received
    }
}

//! Frames on a unix stream socket, with file descriptors: both sides of the monitor protocol use this.
//!
//! A frame is a header of eight bytes (length of the body, little endian; number of descriptors; three zeros) and a
//! JSON body. Descriptors travel with the first byte of their frame. Everything received is bounded; anything else
//! than a frame is an error, after which the connection is of no use.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Longest body, bytes.
pub const MAX_BODY: usize = 4 << 20;

/// Most descriptors of one frame.
pub const MAX_FDS: usize = 4;

const HEADER: usize = 8;
const CHUNK: usize = 16 << 10;
/// Descriptors that may wait for their frames' last bytes.
const MAX_QUEUED_FDS: usize = 4 * MAX_FDS;

/// A frame as received.
#[derive(Debug)]
pub struct Frame {
    /// JSON.
    pub body: Vec<u8>,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// A frame on its way out.
#[derive(Debug)]
pub struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Outgoing {
    /// Encodes `message` and takes `fds` along.
    pub fn new(message: &impl serde::Serialize, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let mut bytes = vec![0; HEADER];
        serde_json::to_writer(&mut bytes, message)?;
        let length = bytes.len() - HEADER;
        if length > MAX_BODY || fds.len() > MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a frame of {length} bytes is too long"),
            ));
        }
        bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[4] = fds.len() as u8;
        Ok(Self { bytes, sent: 0, fds })
    }

    /// Bytes that are not sent yet.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends as much as the socket takes; `WouldBlock` when that is not all.
    pub fn send(&mut self, socket: impl AsFd) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            let borrowed: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&borrowed));
            }
            let slices = [IoSlice::new(&self.bytes[self.sent..])];
            match rustix::net::sendmsg(&socket, &slices, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            self.fds.clear();
        }
        Ok(())
    }
}

/// Puts received bytes and descriptors together to frames.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl FrameReader {
    /// Receives once. `Ok(false)` is the end of the stream.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut chunk)];
        let received = loop {
            match rustix::net::recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => continue,
                other => break other?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > MAX_QUEUED_FDS {
            return Err(malformed("too many descriptors"));
        }
        self.buffer.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes > 0)
    }

    /// The next whole frame.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let fds = usize::from(header[4]);
        if length > MAX_BODY || fds > MAX_FDS || header[5..] != [0; 3] {
            return Err(malformed("not a frame"));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        if self.fds.len() < fds {
            return Err(malformed("descriptors are missing"));
        }
        let rest = self.buffer.split_off(HEADER + length);
        let mut body = std::mem::replace(&mut self.buffer, rest);
        body.drain(..HEADER);
        Ok(Some(Frame { body, fds: self.fds.drain(..fds).collect() }))
    }
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn frames_and_descriptors_arrive_in_order() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut reader = FrameReader::default();
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        Outgoing::new(&"first", vec![]).unwrap().send(&near).unwrap();
        Outgoing::new(&"second", vec![pipe]).unwrap().send(&near).unwrap();
        Outgoing::new(&"third", vec![]).unwrap().send(&near).unwrap();
        drop(near);
        while reader.receive(&far).unwrap() {}
        let mut seen = Vec::new();
        while let Some(frame) = reader.next_frame().unwrap() {
            seen.push((String::from_utf8(frame.body).unwrap(), frame.fds.len()));
        }
        assert_eq!(seen, [("\"first\"".into(), 0), ("\"second\"".into(), 1), ("\"third\"".into(), 0)]);
    }

    #[test]
    fn garbage_is_an_error_and_a_part_is_not_a_frame() {
        let check = |bytes: &[u8], expect: Option<bool>| {
            let mut reader = FrameReader { buffer: bytes.to_vec(), ..FrameReader::default() };
            assert_eq!(reader.next_frame().ok().map(|frame| frame.is_some()), expect, "{bytes:?}");
        };
        check(b"", Some(false));
        check(b"\x02\0\0\0\0\0\0\0{", Some(false));
        check(b"\x02\0\0\0\0\0\0\0{}", Some(true));
        check(b"\x02\0\0\0\x01\0\0\0{}", None);
        check(b"GET / HTTP/1.1", None);
        check(b"\xff\xff\xff\x7f\0\0\0\0", None);
    }
}

//! A WebSocket client (RFC 6455) as Kubernetes' streaming endpoints want one: each message begins with its channel.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};

/// Largest message that is read.
const LARGEST: usize = 16 << 20;
const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// An open connection.
#[derive(Debug)]
pub struct WebSocket<S> {
    stream: S,
}

impl<S: Read + Write> WebSocket<S> {
    /// Asks for `path` with a subprotocol; an answer that is no upgrade is an error that shows it.
    pub fn open(mut stream: S, path: &str, protocol: &str) -> Result<Self> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        let head = head(&mut stream)?;
        if !head.starts_with("HTTP/1.1 101 ") {
            let mut body = [0; 1024];
            let length = stream.read(&mut body).unwrap_or(0);
            bail!("{path}: {head}{}", String::from_utf8_lossy(&body[..length]));
        }
        ensure!(head.contains(protocol), "{path}: another protocol: {head}");
        Ok(Self { stream })
    }

    /// Sends a message.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        self.frame(BINARY, &[&[channel], bytes].concat())
    }

    /// The next message and its channel; none when the other side closes.
    pub fn next_message(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let mut message = Vec::new();
        loop {
            let mut start = [0; 2];
            self.stream.read_exact(&mut start).context("read a frame")?;
            let (is_last, kind) = (start[0] & 0x80 != 0, start[0] & 0x0f);
            let length = self.length(start[1])?;
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload)?;
            match kind {
                CLOSE => return Ok(None),
                PING => self.frame(PONG, &payload)?,
                BINARY | CONTINUATION => {
                    message.append(&mut payload);
                    ensure!(message.len() <= LARGEST, "a message of {} bytes", message.len());
                    if is_last {
                        ensure!(!message.is_empty(), "a message without a channel");
                        let channel = message.remove(0);
                        return Ok(Some((channel, message)));
                    }
                }
                other => ensure!(other == PONG, "a frame of kind {other}"),
            }
        }
    }

    fn length(&mut self, short: u8) -> Result<usize> {
        let length = match short & 0x7f {
            126 => {
                let mut bytes = [0; 2];
                self.stream.read_exact(&mut bytes)?;
                u64::from(u16::from_be_bytes(bytes))
            }
            127 => {
                let mut bytes = [0; 8];
                self.stream.read_exact(&mut bytes)?;
                u64::from_be_bytes(bytes)
            }
            length => u64::from(length),
        };
        ensure!(short & 0x80 == 0 && length <= LARGEST as u64, "a masked or too large frame");
        Ok(length as usize)
    }

    /// Masked, as a client has to, by zeros.
    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<()> {
        let mut frame = vec![0x80 | kind, 0x80 | 127];
        frame.extend((payload.len() as u64).to_be_bytes());
        if payload.len() < 126 {
            frame.truncate(1);
            frame.push(0x80 | payload.len() as u8);
        } else if let Ok(length) = u16::try_from(payload.len()) {
            frame.truncate(1);
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame)?;
        Ok(self.stream.flush()?)
    }
}

/// The head of an answer, and not a byte more.
fn head(stream: &mut impl Read) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("read the answer's head")?;
        head.push(byte[0]);
        ensure!(head.len() < 16 << 10, "an endless head");
    }
    Ok(String::from_utf8(head)?)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Answers from memory, and keeps what is sent.
    struct Server(Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Server {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(into)
        }
    }

    impl Write for Server {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn messages_of_every_length_come_and_go() {
        for length in [0, 124, 125, 65_534, 65_535, 100_000] {
            let mut client = WebSocket { stream: Server(Cursor::default(), Vec::new()) };
            client.send(3, &vec![b'x'; length]).unwrap();
            let mut sent = client.stream.1;
            // A server's frames are not masked.
            sent[1] &= 0x7f;
            let mask = match sent[1] {
                127 => 10,
                126 => 4,
                _ => 2,
            };
            sent.drain(mask..mask + 4);
            let bytes = [&[0x89, 1, b'p'], &sent[..], &[0x88, 0]].concat();
            let mut client = WebSocket { stream: Server(Cursor::new(bytes), Vec::new()) };
            assert_eq!(client.next_message().unwrap(), Some((3, vec![b'x'; length])));
            assert_eq!(client.stream.1, [0x8a, 0x81, 0, 0, 0, 0, b'p']);
            assert_eq!(client.next_message().unwrap(), None);
        }
    }
}

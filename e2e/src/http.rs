//! A small blocking HTTP/1.1 client for registries on loopback, here or inside a node's network namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{ns, wait};

/// What a registry may answer with; without it a registry hides OCI manifests.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";

/// Where a server listens: an address, and the pid of the holder whose network namespace it is in.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Address of the server.
    pub address: SocketAddr,
    /// Holder of the node, or none for the harness's own network namespace.
    pub holder: Option<u32>,
}

/// An answer, with its body read to the end.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, put together where it came in chunks.
    pub body: Vec<u8>,
}

impl Answer {
    /// Takes the bytes of a whole answer apart.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("no end of headers")?;
        let head = std::str::from_utf8(&bytes[..end])?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Self { status, headers, body: bytes[end + 4..].to_vec() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = joined(&answer.body).context("body in chunks")?;
        }
        Ok(answer)
    }

    /// First header of that lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Origin {
    /// Sends one request with `Connection: close` and reads the answer.
    pub fn request(&self, method: &str, path: &str, content: Option<(&str, &[u8])>) -> Result<Answer> {
        let mut stream = self.connect()?;
        let (kind, body) = content.unwrap_or(("application/octet-stream", &[]));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: {ACCEPT}\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Answer::parse(&answer).with_context(|| format!("answer to {method} {path}"))
    }

    /// Connects, with deadlines for that and for each read.
    pub fn connect(&self) -> Result<TcpStream> {
        let address = self.address;
        let connect = move || {
            TcpStream::connect_timeout(&address, wait::scaled(Duration::from_secs(5)))
                .with_context(|| format!("connect to {address}"))
        };
        let stream = match self.holder {
            Some(holder) => ns::in_network_of(holder, connect)?,
            None => connect()?,
        };
        stream.set_read_timeout(Some(wait::scaled(Duration::from_secs(30))))?;
        Ok(stream)
    }
}

/// Puts the chunks of a body together (RFC 9112, 7.1).
fn joined(mut chunks: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|w| w == b"\r\n").context("no end of a chunk's size")?;
        let size = usize::from_str_radix(std::str::from_utf8(&chunks[..end])?, 16)?;
        if size == 0 {
            return Ok(body);
        }
        let start = end + 2;
        body.extend(chunks.get(start..start + size).context("a chunk ends early")?);
        chunks = chunks.get(start + size + 2..).context("no end of a chunk")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer = Answer::parse(b"HTTP/1.1 202 Accepted\r\nLocation: /a:b\r\n\r\nbody").unwrap();
        assert_eq!((answer.status, answer.header("location")), (202, Some("/a:b")));
        assert_eq!(answer.body, b"body");
        assert!(Answer::parse(b"HTTP/1.1 200 OK\r\n").is_err());
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice();
        let answer = Answer::parse(&[head, b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n"].concat()).unwrap();
        assert_eq!(answer.body, b"abc0123456789");
        assert!(Answer::parse(&[head, b"3\r\nab"].concat()).is_err());
    }
}

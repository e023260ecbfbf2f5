//! WebSocket (RFC 6455), the server's side: the handshake's answer, frames, and the channels of Kubernetes in them.
//!
//! It must not know what a channel is for.

mod connection;
mod frame;

#[cfg(test)]
pub mod client;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub use connection::{Format, serve};
#[cfg(test)]
pub use frame::Opcode;

/// What a client appends to its key to know that the server understood it (RFC 6455, 1.3).
const PROOF: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The answer to a client's `Sec-WebSocket-Key`; `None` when that is not 16 bytes in base64.
pub fn accept(key: &str) -> Option<String> {
    STANDARD.decode(key).ok().filter(|nonce| nonce.len() == 16)?;
    let mut digest = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(PROOF);
    Some(STANDARD.encode(digest.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_answered_as_in_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ==").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(accept("c2hvcnQ="), None);
        assert_eq!(accept("*"), None);
    }
}

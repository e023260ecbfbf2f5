//! SPDY/3.1, the server's side of what Kubernetes clients speak: `spdy-protocol-draft3-1`.
//!
//! It owns frames, header compression and the rules of streams. It must not know what a stream is for.

mod connection;
mod frame;
mod headers;

#[cfg(test)]
pub mod client;

pub use connection::serve;
#[cfg(test)]
pub use frame::Control;
#[cfg(test)]
pub use headers::Deflater;

/// Status of RST_STREAM (2.6.3).
pub mod reset {
    /// The stream breaks a rule.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// Data for a stream that never was.
    pub const INVALID_STREAM: u32 = 2;
    /// There will be no such stream.
    pub const REFUSED_STREAM: u32 = 3;
    /// It is not wanted any more.
    pub const CANCEL: u32 = 5;
    /// A window became too large.
    pub const FLOW_CONTROL_ERROR: u32 = 7;
    /// Data after the sender had half-closed the stream.
    pub const STREAM_ALREADY_CLOSED: u32 = 9;
}

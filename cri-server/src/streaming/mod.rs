//! The streaming server: Exec, Attach and PortForward over SPDY/3.1 and WebSocket.
//!
//! It owns tokens, connections and their protocols, and knows the node only as a [`session::Target`].
//!
//! ```text
//! server ─▶ handshake ─▶ remotecommand, portforward ─▶ session::Target
//!                              │
//!                     spdy, websocket ─▶ mux
//! ```

mod handshake;
mod mux;
mod portforward;
mod remotecommand;
mod server;
pub mod session;
mod spdy;
mod tls;
mod tokens;
mod websocket;

#[cfg(test)]
mod tests;

pub use server::Streaming;
pub use tokens::Request;

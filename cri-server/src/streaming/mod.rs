//! The streaming server: Exec, Attach and PortForward over SPDY/3.1 and WebSocket.
//!
//! It owns tokens, connections and their protocols, and knows the node only as a [`session::Target`].

pub mod session;

//! Daemon side of the monitor protocol.

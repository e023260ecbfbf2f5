//! The RPC table.

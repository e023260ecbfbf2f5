//! One file per RPC.

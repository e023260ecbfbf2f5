//! Steps that several RPCs and the recovery share. RPCs import these; these never import an RPC.

pub mod command;
pub mod convert;
pub mod cri_config;
pub mod mapped_volumes;
pub mod pod_files;
pub mod resolve;
pub mod signal;
pub mod stats;
pub mod streams;
pub mod supervise;
pub mod teardown;

//! Steps that several RPCs and the recovery share. RPCs import these; these never import an RPC.

pub mod announce;
pub mod command;
pub mod convert;
pub mod cpuset;
pub mod cri_config;
pub mod entry;
pub mod labels;
pub mod limits;
pub mod listing;
pub mod mapped_volumes;
pub mod metrics;
pub mod pod_files;
pub mod resolve;
pub mod rules;
pub mod signal;
pub mod stats;
pub mod streams;
pub mod supervise;
pub mod teardown;
pub mod volumes;

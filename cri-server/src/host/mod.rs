//! Side effects on the node, made by the daemon: files, mounts, cgroups, CNI plugins, the monitor's client.
//! Nothing here knows gRPC.

pub mod cgroup;
pub mod cni;
pub mod fs;
pub mod monitor;
pub mod mount;
pub mod user;

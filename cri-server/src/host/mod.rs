//! Side effects on the node, made by the daemon: files, mounts, cgroups, namespaces, CNI plugins, monitors.
//! Nothing here knows gRPC.

pub mod cdi;
pub mod cgroup;
pub mod checkpoint;
pub mod cni;
pub mod fs;
pub mod handlers;
#[allow(unsafe_code)]
pub mod idmap;
pub mod kept;
#[allow(unsafe_code)]
pub mod limits;
#[allow(unsafe_code)]
pub mod lost_rules;
pub mod monitor;
pub mod mount;
pub mod netns;
pub mod node;
pub mod oci;
pub mod oom_score;
pub mod processes;
pub mod program;
pub mod selinux;
pub mod source;
pub mod systemd;
pub mod usage;
pub mod user;

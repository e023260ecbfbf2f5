//! The per-pod process: makes and pins the pod's namespaces, runs the OCI runtime, owns the containers' stdio,
//! their CRI log files, exit codes and exit records, and outlives the daemon.
//!
//! One thread, one epoll, no tokio: what waits is a file descriptor. A hung OCI runtime is a child that has not
//! ended yet and delays nobody. Nothing here knows pods as Kubernetes does, images, CNI, or gRPC; the daemon
//! passes paths and gets events (`protocol`).
//!
//! ```text
//! startup ─▶ namespaces (one clone, pins) ─▶ pod::Pod (event loop)
//!                                             ├─ connection   frames from and to daemons
//!                                             ├─ invocation   the OCI runtime as a child
//!                                             ├─ output, log  pipes or pty ─▶ CRI log file, attachments
//!                                             └─ exits        reaping, OOM verdict, exit record
//! ```

pub mod protocol;
pub mod record;
pub mod startup;
pub mod wire;

mod attachment;
mod cgroup;
mod clock;
mod connection;
mod container;
mod invocation;
mod log;
mod namespaces;
mod oom;
mod output;
mod pod;
mod pod_init;
mod poll;
mod runtime_log;
#[allow(unsafe_code)]
pub(crate) mod sys;
mod sysctl;

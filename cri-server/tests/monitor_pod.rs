//! The per-pod monitor with real OCI runtimes, in a private mount namespace (ring 1: needs root).
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, their surroundings included")]

#[path = "monitor_pod/attach.rs"]
mod attach;
#[path = "monitor_pod/costs.rs"]
mod costs;
#[path = "monitor_pod/entries.rs"]
mod entries;
#[path = "monitor_pod/execs.rs"]
mod execs;
#[path = "monitor_pod/exits.rs"]
mod exits;
#[path = "monitor_pod/faults.rs"]
mod faults;
#[path = "monitor_pod/ground.rs"]
mod ground;
#[path = "monitor_pod/logs.rs"]
mod logs;
#[path = "monitor_pod/sandbox.rs"]
mod sandbox;

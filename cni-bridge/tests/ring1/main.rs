//! The real program in network namespaces of its own: one that plays the host and one per pod.
//!
//! Needs root. Without it every test is skipped, loudly; with `E2E_REQUIRE=1` that is a failure.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod bandwidth;
mod bridge;
mod crash;
mod firewall;
mod guest;
mod hostile;
mod loopback;
mod macvlan;
mod macvlan_faults;
mod mixed;
mod node;
mod portmap;
mod ptp;
mod repair;
mod result;
mod switch;
mod tuning;
mod wire;

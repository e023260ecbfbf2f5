//! The real program in network namespaces of its own: one that plays the host and one per pod.
//!
//! Needs root. Without it every test is skipped, loudly; with `E2E_REQUIRE=1` that is a failure.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod altered;
mod bandwidth;
mod bridge;
mod crash;
mod families;
mod firewall;
mod flows;
mod guest;
mod hostile;
mod hostile_pods;
mod loopback;
mod macvlan;
mod macvlan_faults;
mod mixed;
mod node;
mod one_subnet;
mod portmap;
mod ptp;
mod races;
mod register;
mod repair;
mod result;
mod reuse;
mod sources;
mod status;
mod switch;
mod tuning;
mod wire;

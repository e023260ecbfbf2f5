//! CNI plugins for links, ports, rules and addresses; and the netlink, nf_tables and address management below them.
//!
//! Imports go one way: `repair` → `plugin` → {`turn`, `ledger`, `ipam`} → `net`. Only `net` touches the kernel's network state.
#![deny(unsafe_code)]

pub mod install;
pub mod ipam;
pub mod ledger;
pub mod net;
pub mod owner;
pub mod plugin;
pub mod repair;
#[cfg(test)]
mod sample;
pub mod turn;

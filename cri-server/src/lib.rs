//! The CRI v1 container runtime of Berth.
//!
//! Imports go one way: `bin → cli, service → rpc → steps → {store, image, host, spec} → model`.
//! `model` and `spec` do no I/O and are not async; tonic is named only in `service` and `error`;
//! processes, mounts and namespaces are touched only in `host` (the daemon) and `monitor` (the per-pod process).
//! Modules that need `unsafe` say so with `#[allow(unsafe_code)]` where they are declared.
#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod detached;
pub mod enter;
pub mod error;
pub mod events;
pub mod host;
pub mod image;
pub mod model;
pub mod monitor;
pub mod operations;
pub mod paths;
pub mod recover;
pub mod rpc;
pub mod service;
pub mod spec;
pub mod steps;
pub mod store;
pub mod streaming;

//! The image library against archives, registries and overlayfs. Needs root: layers have owners and devices.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod archives;
mod fixture;
mod hostile;
mod layers;
mod model;
mod registry;
mod registry_faults;
mod registry_secrets;
mod server;
mod store;

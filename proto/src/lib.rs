//! Wire formats of Berth, and only those: no I/O, no policy.
//!
//! - [`cri`]: Container Runtime Interface v1 (feature `cri`)
//! - [`admin`]: what an administrator asks of the runtime beyond the CRI (feature `cri`)
//! - [`csi`], [`pluginregistration`]: Container Storage Interface v1 and kubelet plugin registration (feature `csi`)
//! - [`cni`]: Container Network Interface 0.1.0–1.1.0: JSON types and the plugin skeleton
#![deny(unsafe_code)]

pub mod cni;

/// Container Runtime Interface v1, generated from `cri/v1/api.proto`.
#[cfg(feature = "cri")]
#[allow(clippy::all, missing_docs)]
#[rustfmt::skip]
#[path = "gen/runtime.v1.rs"]
pub mod cri;

/// What an administrator asks of the daemon, generated from `berth/v1/admin.proto`.
#[cfg(feature = "cri")]
#[allow(clippy::all, missing_docs)]
#[rustfmt::skip]
#[path = "gen/berth.v1.rs"]
pub mod admin;

/// Container Storage Interface v1, generated from `csi/v1/csi.proto`.
#[cfg(feature = "csi")]
#[allow(clippy::all, missing_docs)]
#[rustfmt::skip]
#[path = "gen/csi.v1.rs"]
pub mod csi;

/// Kubelet plugin registration v1, generated from `pluginregistration/v1/api.proto`.
#[cfg(feature = "csi")]
#[allow(clippy::all, missing_docs)]
#[rustfmt::skip]
#[path = "gen/pluginregistration.rs"]
pub mod pluginregistration;

//! Images made on the spot: layers, manifests, the standard set, and their way into a registry.

pub mod layer;
pub mod push;
pub mod set;
pub mod volumes;

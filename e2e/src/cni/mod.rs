//! CNI plugins without a container runtime: hosts to run them on, plugin sets by several makers, and a runner that
//! calls a list as a runtime does.
//!
//! It knows the specification and nothing of how any maker's plugins work; only [`random`] and the leak diff look at
//! what they leave.

pub mod host;
pub mod judges;
pub mod plugins;
pub mod random;
pub mod runner;

pub use host::Host;
pub use plugins::{Maker, Plugins};
pub use runner::{Attached, Network, Pod};

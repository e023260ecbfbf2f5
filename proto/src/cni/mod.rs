//! Container Network Interface: JSON types, conversion between specification versions, and the plugin skeleton.
//!
//! - plugins: implement [`plugin::Plugin`] and call [`plugin::main`]
//! - runtimes: [`runtime`] builds what the Nth plugin of a list reads and judges what it wrote
//!
//! Nothing here touches the network, namespaces or files; only [`plugin::main`] reads and writes its own standard
//! streams.

pub mod args;
pub mod conf;
pub mod error;
mod legacy;
pub mod object;
pub mod plugin;
pub mod result;
pub mod runtime;
pub mod version;

pub use args::{Attachment, ContainerId, IfName, Invocation, NetworkName, Verb};
pub use conf::{NetConf, NetConfList, PluginConf};
pub use error::{CniError, ErrorCode};
pub use plugin::{Plugin, Request};
pub use result::CniResult;
pub use version::SpecVersion;

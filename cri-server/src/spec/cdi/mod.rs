//! The Container Device Interface: what a device of a vendor, named `vendor/class=name`, changes in a container.
//!
//! [`requested`] says which devices a request names. [`Registry`] takes the text of the node's specification files and
//! finds what they say of a device. [`Edits`] is that with its device nodes looked up, and is applied to a finished
//! OCI specification. Follows the Container Device Interface Specification, versions 0.3.0 to 1.1.0 without network
//! devices. Must not know where the files are: `host/cdi.rs` reads them.

mod apply;
mod edits;
mod error;
mod file;
mod name;
mod registry;
mod yaml;

#[cfg(test)]
mod tests;

pub(super) use apply::apply;
pub use edits::{Edits, Node};
pub use error::CdiError;
pub use name::requested;
pub use registry::{Format, Registry, Source};

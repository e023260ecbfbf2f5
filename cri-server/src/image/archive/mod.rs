//! Images in files: OCI layouts and Docker archives (`docker save`), in and out.
//!
//! An archive is as hostile as a registry: its documents are bounded, every digest is checked, and its names become
//! no paths.

mod export;
mod import;
mod index;
mod layer_tar;

pub use export::export;
pub use import::import;

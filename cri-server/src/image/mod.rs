//! Images: references, registries, pulls, layers on disk, archives, overlay roots.
//!
//! Owns everything below `<root>/layers` and `<root>/images.redb`. Knows neither gRPC nor the command line, and no
//! container: callers say with leases which layers they use.
//!
//! A layer is unpacked without its parents into a directory of its own, which is named by its diff-id and shared by
//! all images that have it. Where the layers below change what such a directory has to hold (see [`unpack::graft`])
//! the image gets a copy of the directory named by its chain id.

pub mod archive;
pub mod config;
pub mod digest;
pub mod document;
pub mod error;
pub(crate) mod install;
pub mod overlay;
pub mod platform;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod store;
pub mod unpack;

pub use archive::{export, import};
pub use config::ImageConfig;
pub use digest::Digest;
pub use error::ImageError;
pub use pull::{Progress, PullRequest};
pub use reference::Reference;
pub use registry::{Credentials, HostConfig, RegistryConfig};
pub use store::{Config, FsUsage, Image, ImageStore, LayerKey, Lease};

//! The kernel's network state: links, addresses, routes, namespaces, nf_tables, sysctls.
//!
//! Owns netlink and every other side effect on the network. Knows nothing of CNI configurations.

pub mod addr;
#[allow(unsafe_code)]
pub mod background;
pub mod conntrack;
pub mod device;
mod error;
pub mod exec;
pub mod link;
pub mod neighbour;
pub mod netns;
pub mod nft;
pub mod parameters;
pub mod port;
pub mod removal;
pub mod route;
#[allow(unsafe_code)]
pub mod socket;
pub mod sublink;
pub mod sysctl;
pub mod traffic;

pub use error::{NetError, Refusal};

//! The end-to-end harness of Berth: test nodes, images made on the spot, peers, a typed CRI client, the leak diff.
//!
//! A test takes a [`node::Node`], talks to it through [`cri::Cri`] and ends by asking [`leaks`] what is left.
//! Tools of the machine are started in [`exec`] only, namespaces are entered in [`ns`] only.
#![deny(unsafe_code)]

pub mod bench;
pub mod case;
pub mod cgroup;
pub mod cni;
pub mod cri;
pub mod critest;
pub mod daemon;
pub mod dice;
pub mod exec;
pub mod faulty;
pub mod gate;
pub mod guest;
pub mod http;
pub mod image;
pub mod kubelet;
pub mod leaks;
pub mod life;
pub mod log;
pub mod mounts;
pub mod node;
#[allow(unsafe_code)]
pub mod ns;
pub mod paths;
pub mod pattern;
pub mod processes;
pub mod registry;
pub mod streams;
pub mod terminal;
pub mod tls;
pub mod wait;
pub mod websocket;
pub mod wire;

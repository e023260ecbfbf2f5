//! Tests on another kernel: a virtual machine with cgroup v2, AppArmor and what else the machine at hand may lack.
//!
//! The guest sees the workspace and the build under the very paths that they have here, so a test program runs there
//! as it runs here. It has no network: [`stage`] puts everything that it needs on a disk, [`root`] makes the system
//! that it runs, [`machine`] boots it, [`init`] is its first process, and [`job`] is what both sides say to each
//! other. [`plan`] names the steps, [`selinux`] has the policy of those that run under it. Emulated processors are some times slower than real ones: [`SLOWNESS`].

pub mod build;
pub mod init;
pub mod job;
pub mod machine;
pub mod plan;
pub mod root;
pub mod selinux;
pub mod stage;

/// By how much deadlines are multiplied in the guest.
pub const SLOWNESS: u32 = 4;

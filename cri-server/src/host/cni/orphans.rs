//! Ends plugins that outlived the daemon that ran them, so that no ADD goes on beside the DEL that undoes it.
//!
//! They are found by CNI_CONTAINERID in their environment, which delegated plugins inherit.

use std::io;
use std::time::Duration;

use crate::host::processes::{Said, end_all};

/// Kills every plugin that works for `container_id`, and waits until it is gone. Blocks for up to `patience`.
pub(super) fn end(container_id: &str, patience: Duration) -> io::Result<()> {
    let wanted = format!("CNI_CONTAINERID={container_id}");
    end_all(Said::Environment, patience, &|variables| variables.contains(&wanted.as_bytes()))
}

//! An OCI runtime that is run by hand, from a sealed copy in memory: as a file, crun and runc copy themselves at every
//! start, which would count as their own time.

use std::fs::File;
use std::io::Seek;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::exec::Program;

/// A program's copy, and where the containers' state is.
#[derive(Debug)]
pub struct ByHand {
    copy: File,
    root: PathBuf,
}

impl ByHand {
    /// Copies the program at `path`.
    pub fn new(path: &Path, root: &Path) -> Result<Self> {
        let copy = memfd_create("by-hand", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut copy = File::from(copy);
        let mut program = File::open(path).with_context(|| format!("open {}", path.display()))?;
        std::io::copy(&mut program, &mut copy).with_context(|| format!("copy {}", path.display()))?;
        copy.rewind()?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&copy, seals).context("seal the copy")?;
        Ok(Self { copy, root: root.to_owned() })
    }

    /// The runtime, to be given a command.
    #[must_use]
    pub fn program(&self) -> Program {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.copy.as_raw_fd());
        Program::new(path).arg("--root").arg(&self.root)
    }
}

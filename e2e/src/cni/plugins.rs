//! Plugin sets by their makers.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::host::Host;
use crate::exec::Program;
use crate::paths;

/// Who made a set of plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Maker {
    /// This project.
    Ours,
    /// The reference plugins, newest of 1.9.
    Reference,
    /// Debian's reference plugins, 1.1.1.
    Debian,
}

/// A directory of plugins.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// Who made them.
    pub maker: Maker,
    /// Where those that a list names are.
    pub dir: PathBuf,
    /// CNI_PATH: where those are found that a plugin calls.
    pub path: Vec<PathBuf>,
}

impl Maker {
    /// As messages and tables name it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ours => "Berth",
            Self::Reference => "reference 1.9",
            Self::Debian => "Debian 1.1.1",
        }
    }

    /// The maker's plugins; ours are installed on the host.
    pub fn plugins(self, host: &Host) -> Result<Plugins> {
        let dir = match self {
            Self::Ours => install(host)?,
            Self::Reference => paths::cache().join("cni/bin"),
            Self::Debian => PathBuf::from("/usr/lib/cni"),
        };
        if !dir.join("bridge").exists() {
            bail!("{} has no bridge plugin: run `make setup`", dir.display());
        }
        Ok(Plugins { maker: self, path: vec![dir.clone()], dir })
    }
}

impl Plugins {
    /// Whether the set has that plugin.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }
}

/// Ours, put into a directory by their own command.
fn install(host: &Host) -> Result<PathBuf> {
    let dir = host.scratch().join("plugins");
    if !dir.exists() {
        Program::new(paths::binary("cni-bridge")?).arg("install").arg(&dir).ok()?;
    }
    Ok(dir)
}

/// A program that set-up builds beside the reference plugins, such as cnitool or the tests of others.
pub fn peer(name: &str) -> Result<PathBuf> {
    let dir = paths::cache().join("cni");
    let found = ["bin", "tests"].iter().map(|part| dir.join(part).join(name)).find(|path| Path::exists(path));
    found.with_context(|| format!("{name} is not in .cache/cni: run `e2e/scripts/setup.sh cni`"))
}

//! Where things are: the workspace, its cache, the binaries under test and the tools beside them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// What set-up and harness keep between runs; git ignores it.
#[must_use]
pub fn cache() -> PathBuf {
    workspace().join(".cache")
}

/// A peer that `setup.sh` builds: crictl, critest, kubelet, runc or youki.
pub fn peer(name: &str) -> Result<PathBuf> {
    let path = cache().join("bin").join(name);
    if !path.exists() {
        bail!("{name} is not in .cache/bin: run `make setup`");
    }
    Ok(path)
}

/// A binary of Berth: from `BERTH_BIN_DIR`, else beside the running test, else from the release directory.
pub fn binary(name: &str) -> Result<PathBuf> {
    let mut tried = Vec::new();
    for dir in binary_dirs()? {
        let path = dir.join(name);
        if path.exists() {
            return Ok(path);
        }
        tried.push(dir.display().to_string());
    }
    bail!("{name} is in none of {}: run `make build`", tried.join(", "))
}

fn binary_dirs() -> Result<Vec<PathBuf>> {
    if let Some(dir) = std::env::var_os("BERTH_BIN_DIR") {
        return Ok(vec![std::path::absolute(dir)?]);
    }
    let profile = profile_dir()?;
    let release = profile.parent().map(|target| target.join("release")).unwrap_or_default();
    Ok(vec![profile, release])
}

/// The harness's own program that holds and enters nodes; cargo builds it together with the tests.
pub fn node_program() -> Result<PathBuf> {
    let path = profile_dir()?.join("e2e-node");
    if !path.exists() {
        bail!("{} is missing: build it with `cargo build -p e2e --bins`", path.display());
    }
    Ok(path)
}

/// `target/debug` or `target/release`, from where this program runs.
fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("find the running program")?;
    let dir = exe.parent().context("the running program has no directory")?;
    Ok(if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.parent().context("no target directory")?.to_owned()
    } else {
        dir.to_owned()
    })
}

/// A tool of the machine, looked up in PATH and the directories for system programs.
#[must_use]
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|path| path.is_file())
}

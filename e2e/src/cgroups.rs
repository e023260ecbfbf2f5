//! The cgroups of a node: where they are in one hierarchy or many, and their end. Knows no runtime.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const MOUNT: &str = "/sys/fs/cgroup";

/// Mount points of the machine's hierarchies: one on cgroup v2, else one for each controller.
pub fn hierarchies() -> Result<Vec<PathBuf>> {
    if Path::new(MOUNT).join("cgroup.controllers").exists() {
        return Ok(vec![MOUNT.into()]);
    }
    std::fs::read_dir(MOUNT)?.map(|entry| Ok(entry?.path())).collect()
}

/// The parent of a node's pods.
#[must_use]
pub fn parent(node: &str) -> String {
    format!("berth-{node}")
}

/// Removes the cgroups that carry the node's id in every hierarchy, deepest first.
pub fn remove(node: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let top = hierarchy.join(parent(node));
        if top.exists() {
            remove_tree(&top)?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    // In place of a hierarchy that is not mounted there may be plain directories with plain files.
    let removed = std::fs::remove_dir(dir).or_else(|_| std::fs::remove_dir_all(dir));
    removed.with_context(|| format!("remove the cgroup {}", dir.display()))
}

//! cgroups of a node and of its containers, as the kernel shows them to the machine that the node is on: one hierarchy
//! or many. `E2E_CGROUP_DRIVER=systemd` has nodes use that driver.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proto::cri as api;

use crate::cri::Cri;
use crate::exec::Program;

/// Where the machine's hierarchies are.
const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup in all hierarchies.
pub struct Cgroup {
    path: String,
}

impl Cgroup {
    /// The one of a container.
    pub async fn of(cri: &Cri, container: &str) -> Result<Self> {
        let request = api::ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        let info = cri.runtime.clone().container_status(request).await?.into_inner().info;
        let info: serde_json::Value =
            serde_json::from_str(info.get("info").context("no verbose information")?)?;
        // The reference names only what the OCI runtime gets.
        let path =
            info["cgroup"].as_str().or(info["cgroupsPath"].as_str()).context("no path of the cgroup")?;
        Ok(Self { path: path.to_owned() })
    }

    /// The one that it is in.
    #[must_use]
    pub fn parent(&self) -> Self {
        let path = Path::new(&self.path).parent().map(|path| path.display().to_string());
        Self { path: path.unwrap_or_default() }
    }

    /// Its path below each hierarchy.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What a file says: `v1` as controller and name, or the file of that name on a machine with version 2.
    pub fn read(&self, v1: (&str, &str), v2: &str) -> Result<String> {
        let path = self.file(v1, v2);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Writes a file behind the runtime's back.
    pub fn write(&self, v1: (&str, &str), v2: &str, text: &str) -> Result<()> {
        let path = self.file(v1, v2);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn file(&self, (controller, name): (&str, &str), v2: &str) -> PathBuf {
        let (hierarchy, file) = if is_v2() { ("", v2) } else { (controller, name) };
        Path::new(ROOT).join(hierarchy).join(self.path.trim_start_matches('/')).join(file)
    }
}

/// Whether this machine has version 2 alone.
#[must_use]
pub fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Mount points of the machine's hierarchies: one on version 2, else one for each controller.
pub fn hierarchies() -> Result<Vec<PathBuf>> {
    if is_v2() {
        return Ok(vec![ROOT.into()]);
    }
    std::fs::read_dir(ROOT)?.map(|entry| Ok(entry?.path())).collect()
}

/// Whether nodes use the driver systemd.
#[must_use]
pub fn is_systemd() -> bool {
    std::env::var("E2E_CGROUP_DRIVER").is_ok_and(|driver| driver == "systemd")
}

/// The parent of a node's pods, below each hierarchy.
#[must_use]
pub fn parent(node: &str) -> String {
    let name = format!("berth-{node}");
    if !is_systemd() {
        return name;
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| format!("{}.slice", &name[..end])).collect::<Vec<_>>().join("/")
}

/// The cgroup `name` in the parent of a node's pods, as a request or the configuration names it; empty for that parent.
#[must_use]
pub fn in_parent(node: &str, name: &str) -> String {
    match (is_systemd(), name) {
        (true, "") => format!("berth-{node}.slice"),
        (true, name) => format!("berth-{node}-{name}.slice"),
        (false, "") => format!("/berth-{node}"),
        (false, name) => format!("/berth-{node}/{name}"),
    }
}

/// What systemd has for containers and pods of this machine, without the parent of a node's pods and its parents.
pub fn units(node: &str) -> Result<Vec<String>> {
    if !is_systemd() {
        return Ok(Vec::new());
    }
    let list = Program::new("systemctl").args(["list-units", "--all", "--plain", "--no-legend", "--full"]);
    let list = list.args(["cri-berth-*", "berth-*"]).run()?.stdout;
    let parent = parent(node);
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let names = names.filter(|name| !parent.split('/').any(|step| step == *name));
    let mut found: Vec<String> = names.map(str::to_owned).collect();
    for dir in ["/run/systemd/transient", "/run/systemd/system.control"] {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        found.extend(names.filter(|name| name.contains("berth-")).map(|name| format!("{dir}/{name}")));
    }
    Ok(found)
}

/// Removes the cgroups that carry the node's id in every hierarchy, deepest first.
pub fn remove(node: &str) -> Result<()> {
    if is_systemd() {
        // One that is not there is said by the code, and the walk below sees whatever is left.
        Program::new("systemctl").args(["stop", &in_parent(node, "")]).run()?;
    }
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

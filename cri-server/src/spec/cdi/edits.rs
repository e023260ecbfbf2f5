//! What devices change, with everything known that has to be looked up on the node.

use std::io;
use std::path::{Path, PathBuf};

use super::super::oci::{Hook, Hooks, IntelRdt, Mount};
use super::super::{DeviceKind, HostDevice};
use super::error::CdiError;
use super::file::{self, ContainerEdits, NodeType, Stage};
use super::registry::Registry;

/// What the devices of a request change in its container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits {
    /// `NAME=value`; a later one wins.
    pub env: Vec<String>,
    /// Device nodes.
    pub nodes: Vec<Node>,
    /// Mounts, their places as the files have them.
    pub mounts: Vec<Mount>,
    /// Programs of the node that the OCI runtime runs.
    pub hooks: Hooks,
    /// Class of cache and memory bandwidth.
    pub intel_rdt: Option<IntelRdt>,
    /// More supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// A device node. What the file does not say of mode and owner follows from the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Path in the container.
    pub path: PathBuf,
    /// Path on the host.
    pub host_path: PathBuf,
    /// `c`, `b` or `p`.
    pub kind: &'static str,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// Letters of `rwm`; empty = no access.
    pub access: String,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

impl Edits {
    /// Finds the devices `names`; `look` looks at a device node of the host.
    pub fn of(
        registry: &Registry,
        names: &[String],
        look: impl Fn(&Path) -> io::Result<HostDevice>,
    ) -> Result<Self, CdiError> {
        let edits = registry.edits(names)?;
        let nodes = edits.device_nodes.iter().map(|node| Node::of(node, &look));
        Ok(Self {
            nodes: nodes.collect::<Result<_, _>>()?,
            mounts: edits.mounts.iter().map(mount).collect(),
            hooks: hooks(&edits),
            intel_rdt: edits.intel_rdt.map(intel_rdt),
            additional_gids: edits.additional_gids.into_iter().filter(|gid| *gid != 0).collect(),
            env: edits.env,
        })
    }
}

impl Node {
    /// Type and numbers are the file's where it has them, or else those of the host's node.
    fn of(
        node: &file::DeviceNode,
        look: &impl Fn(&Path) -> io::Result<HostDevice>,
    ) -> Result<Self, CdiError> {
        let host_path = node.host_path.as_ref().unwrap_or(&node.path);
        let wanted = node.r#type.map(letter);
        let numbers = node.major.filter(|major| *major != 0).map(|major| (major, node.minor.unwrap_or(0)));
        let (kind, (major, minor)) = match (wanted, numbers) {
            (Some("p"), _) => ("p", (0, 0)),
            (Some(kind), Some(numbers)) => (kind, numbers),
            (wanted, numbers) => {
                let failed = |source| CdiError::Node { path: host_path.clone(), source };
                let found = look(Path::new(host_path)).map_err(failed)?;
                let kind = match found.kind {
                    DeviceKind::Character => "c",
                    DeviceKind::Block => "b",
                };
                if let Some(expected) = wanted.filter(|wanted| *wanted != kind) {
                    return Err(CdiError::OtherKind { path: host_path.clone(), found: kind, expected });
                }
                (kind, numbers.unwrap_or((found.major, found.minor)))
            }
        };
        let access = match node.permissions.as_deref() {
            None | Some("") => "rwm",
            Some("none") => "",
            Some(letters) => letters,
        };
        Ok(Self {
            path: node.path.clone().into(),
            host_path: host_path.into(),
            kind,
            major,
            minor,
            file_mode: node.file_mode,
            access: access.into(),
            uid: node.uid,
            gid: node.gid,
        })
    }
}

fn letter(kind: NodeType) -> &'static str {
    match kind {
        NodeType::Character => "c",
        NodeType::Block => "b",
        NodeType::Fifo => "p",
    }
}

/// A mount without a type is a bind mount, whatever its options are.
fn mount(mount: &file::Mount) -> Mount {
    let mut options = mount.options.clone();
    let binds = options.iter().any(|option| option == "bind" || option == "rbind");
    let kind = match mount.r#type.as_deref() {
        None | Some("" | "none" | "bind") => "bind",
        Some(_) if binds => "bind",
        Some(kind) => kind,
    };
    if kind == "bind" && !binds {
        options.insert(0, "rbind".into());
    }
    Mount {
        destination: mount.container_path.clone().into(),
        kind: kind.into(),
        source: mount.host_path.clone().into(),
        options,
    }
}

fn hooks(edits: &ContainerEdits) -> Hooks {
    let mut hooks = Hooks::default();
    for hook in &edits.hooks {
        let list = match hook.hook_name {
            Stage::Prestart => &mut hooks.prestart,
            Stage::CreateRuntime => &mut hooks.create_runtime,
            Stage::CreateContainer => &mut hooks.create_container,
            Stage::StartContainer => &mut hooks.start_container,
            Stage::Poststart => &mut hooks.poststart,
            Stage::Poststop => &mut hooks.poststop,
        };
        list.push(Hook {
            path: hook.path.clone().into(),
            args: hook.args.clone(),
            env: hook.env.clone(),
            timeout: hook.timeout,
        });
    }
    hooks
}

fn intel_rdt(rdt: file::IntelRdt) -> IntelRdt {
    IntelRdt {
        clos_id: rdt.clos_id,
        l3_cache_schema: rdt.l3_cache_schema,
        mem_bw_schema: rdt.mem_bw_schema,
        enable_cmt: rdt.enable_cmt,
        enable_mbm: rdt.enable_mbm,
    }
}

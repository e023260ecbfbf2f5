//! Inputs for tests: owned, so that a test changes one thing.

use std::path::PathBuf;

use proto::cri;

use super::capabilities::CapSet;
use super::*;
use crate::model::id::{ContainerId, PodId};

/// A request of the kind that a kubelet makes, with the facts of a node.
pub(super) struct Case {
    pub config: cri::ContainerConfig,
    pub sandbox: cri::PodSandboxConfig,
    pub image: ImageConfig,
    pub container: ContainerId,
    pub pod: PodId,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub home: String,
    pub namespace_paths: NamespacePaths,
    pub pod_files: PodFiles,
    pub mount_sources: Vec<MountSource>,
    pub image_volumes: Vec<ImageVolume>,
    pub devices: Vec<ResolvedDevice>,
    pub cdi: cdi::Edits,
    pub selinux: Option<selinux::Labels>,
    pub seccomp_profile: Option<Vec<u8>>,
    pub pids_limit: Option<i64>,
    pub cgroups_path: String,
    pub rootfs: PathBuf,
    pub node: NodeFacts,
    pub handler: HandlerFacts,
}

impl Case {
    pub fn new() -> Self {
        let state = PathBuf::from("/run/berth/pods/p");
        let mut case = Self {
            config: cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 }),
                command: vec!["/bin/app".into()],
                ..Default::default()
            },
            sandbox: cri::PodSandboxConfig::default(),
            image: ImageConfig::default(),
            container: ContainerId::try_from("c".repeat(64)).unwrap(),
            pod: PodId::try_from("a".repeat(64)).unwrap(),
            uid: 0,
            gid: 0,
            additional_gids: Vec::new(),
            home: String::new(),
            namespace_paths: NamespacePaths {
                network: Some("/var/run/netns/cni-1".into()),
                ipc: Some(state.join("ns/ipc")),
                uts: Some(state.join("ns/uts")),
                pid: Some(state.join("ns/pid")),
                user: Some(state.join("ns/user")),
            },
            pod_files: PodFiles {
                resolv_conf: Some(state.join("resolv.conf")),
                hosts: Some(state.join("hosts")),
                hostname: Some(state.join("hostname")),
                shm: Some(state.join("shm")),
            },
            mount_sources: Vec::new(),
            image_volumes: Vec::new(),
            devices: Vec::new(),
            cdi: cdi::Edits::default(),
            selinux: None,
            seccomp_profile: None,
            pids_limit: None,
            cgroups_path: "/kubepods/pod1/c".into(),
            rootfs: "/run/berth/containers/c/rootfs".into(),
            node: node(),
            handler: HandlerFacts::default(),
        };
        case.namespaces().pid = cri::NamespaceMode::Container as i32;
        case.sandbox_namespaces().pid = cri::NamespaceMode::Container as i32;
        case
    }

    pub fn privileged() -> Self {
        let mut case = Self::new();
        case.security().privileged = true;
        case.sandbox_security().privileged = true;
        case
    }

    pub fn security(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        let linux = self.config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    pub fn resources(&mut self) -> &mut cri::LinuxContainerResources {
        self.config.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    pub fn namespaces(&mut self) -> &mut cri::NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }

    pub fn sandbox_security(&mut self) -> &mut cri::LinuxSandboxSecurityContext {
        self.sandbox.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    pub fn sandbox_namespaces(&mut self) -> &mut cri::NamespaceOption {
        self.sandbox_security().namespace_options.get_or_insert_default()
    }

    pub fn mount(&mut self, mount: cri::Mount) {
        let path = if mount.host_path.is_empty() { "/src" } else { &mount.host_path };
        self.mount_sources.push(MountSource { path: path.into(), propagation: SourcePropagation::Private });
        self.config.mounts.push(mount);
    }

    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            config: &self.config,
            sandbox: &self.sandbox,
            image: &self.image,
            ids: Ids { container: &self.container, pod: &self.pod },
            user: ProcessUser {
                uid: self.uid,
                gid: self.gid,
                additional_gids: &self.additional_gids,
                home: &self.home,
            },
            hostname: "web-0",
            namespaces: &self.namespace_paths,
            cgroups_path: &self.cgroups_path,
            pids_limit: self.pids_limit,
            rootfs: &self.rootfs,
            pod_files: &self.pod_files,
            mount_sources: &self.mount_sources,
            image_volumes: &self.image_volumes,
            devices: &self.devices,
            cdi: &self.cdi,
            selinux: self.selinux.as_ref(),
            seccomp_profile: self.seccomp_profile.as_deref(),
            node: &self.node,
            handler: &self.handler,
        }
    }

    pub fn generate(&self) -> Result<oci::Spec, SpecError> {
        generate(&self.inputs())
    }
}

/// A user namespace as the kubelet asks for one.
pub(super) fn user_namespace() -> cri::UserNamespace {
    let ids = vec![cri::IdMapping { container_id: 0, host_id: 65536, length: 65536 }];
    cri::UserNamespace { mode: cri::NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids }
}

fn node() -> NodeFacts {
    NodeFacts {
        cgroups: CgroupVersion::V2,
        cgroup_namespaces: Availability::Present,
        swap_accounting: Availability::Present,
        hugetlb: Availability::Present,
        huge_page_sizes: [2 << 20, 1 << 30].into(),
        seccomp: Availability::Present,
        apparmor: AppArmor::Disabled,
        oom_score: OomScore::Any,
        capabilities: CapSet::ALL,
        devices: Vec::new(),
        cpus: 2,
        kernel: (6, 1),
        machine: Machine::X86_64,
    }
}

pub(super) fn bind(host: &str, container: &str) -> cri::Mount {
    cri::Mount { host_path: host.into(), container_path: container.into(), ..Default::default() }
}

pub(super) fn device(path: &str, kind: DeviceKind, major: u32, minor: u32) -> HostDevice {
    HostDevice { path: path.into(), kind, major, minor, mode: 0o660, uid: 0, gid: 6 }
}

//! Everything that a specification is made from. The caller resolves paths, users and devices; here is no I/O.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proto::cri;
use serde::{Deserialize, Serialize};

use super::capabilities::CapSet;
use super::cdi;
use super::selinux;
use crate::model::id::{ContainerId, PodId};

/// A request for a container with all facts that it needs.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The container's configuration as the CRI gave it.
    pub config: &'a cri::ContainerConfig,
    /// Its sandbox's configuration.
    pub sandbox: &'a cri::PodSandboxConfig,
    /// What the image says about running it.
    pub image: &'a ImageConfig,
    /// Identity of container and pod.
    pub ids: Ids<'a>,
    /// The user, resolved from the image's root by [`crate::host::user`].
    pub user: ProcessUser<'a>,
    /// Host name that processes see; the sandbox's, or the node's in its network namespace.
    pub hostname: &'a str,
    /// Files of the namespaces that may be joined.
    pub namespaces: &'a NamespacePaths,
    /// Cgroup in the form of the cgroup driver; empty = the runtime's choice.
    pub cgroups_path: &'a str,
    /// Limit of tasks of this container, from the configuration of the daemon.
    pub pids_limit: Option<i64>,
    /// Root file system on the host.
    pub rootfs: &'a Path,
    /// Files of the pod to mount.
    pub pod_files: &'a PodFiles,
    /// Sources of `config.mounts`, in the same order.
    pub mount_sources: &'a [MountSource],
    /// Anonymous volumes for the image's `VOLUME`s.
    pub image_volumes: &'a [ImageVolume],
    /// Devices of `config.devices`, in the same order.
    pub devices: &'a [ResolvedDevice],
    /// What the request's CDI devices change, [`cdi::requested`].
    pub cdi: &'a cdi::Edits,
    /// Content of the Localhost seccomp profile, when [`super::seccomp::requested`] names one.
    pub seccomp_profile: Option<&'a [u8]>,
    /// The container's SELinux labels, where the node has SELinux: elsewhere options are checked and have no effect.
    pub selinux: Option<&'a selinux::Labels>,
    /// What the node can do.
    pub node: &'a NodeFacts,
    /// What the OCI runtime can do.
    pub handler: &'a HandlerFacts,
}

/// Identity of the container.
#[derive(Debug, Clone, Copy)]
pub struct Ids<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// Its pod.
    pub pod: &'a PodId,
}

/// Part of an image's configuration. Labels are left out on purpose: no label decides anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; empty = `/`.
    pub working_dir: String,
    /// `USER`; empty = root.
    pub user: String,
    /// `STOPSIGNAL`; empty = SIGTERM.
    pub stop_signal: String,
    /// `VOLUME`s.
    pub volumes: Vec<String>,
}

impl From<&crate::image::ImageConfig> for ImageConfig {
    fn from(image: &crate::image::ImageConfig) -> Self {
        let config = image.config.clone();
        Self {
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            env: config.env,
            working_dir: config.working_dir,
            user: config.user,
            stop_signal: config.stop_signal,
            volumes: config.volumes.into_iter().collect(),
        }
    }
}

/// Credentials of the container's process.
#[derive(Debug, Clone, Copy)]
pub struct ProcessUser<'a> {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: &'a [u32],
    /// Home directory, for `HOME`; empty = leave it unset.
    pub home: &'a str,
}

/// Files of namespaces. Which of them are joined follows from the CRI's modes, DESIGN 3.1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespacePaths {
    /// The pod's network namespace.
    pub network: Option<PathBuf>,
    /// The pod's IPC namespace.
    pub ipc: Option<PathBuf>,
    /// The pod's UTS namespace.
    pub uts: Option<PathBuf>,
    /// The pod's PID namespace, or that of the target container in mode TARGET.
    pub pid: Option<PathBuf>,
    /// The pod's user namespace.
    pub user: Option<PathBuf>,
}

/// Per-pod files on the host. `None` = the pod has none of its own and the image's stays visible.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// For `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// For `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// For `/etc/hostname`.
    pub hostname: Option<PathBuf>,
    /// For `/dev/shm`: the pod's, or the node's in its IPC namespace.
    pub shm: Option<PathBuf>,
}

/// Source of a mount of the request, opened by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSource {
    /// What is mounted: `host_path` with symlinks followed, an image's root, or a descriptor under `/proc/self/fd`.
    pub path: PathBuf,
    /// Propagation of the mount that the source is on.
    pub propagation: SourcePropagation,
}

/// Propagation of a mount of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourcePropagation {
    /// Neither receives nor sends.
    Private,
    /// Receives.
    Slave,
    /// Receives and sends.
    Shared,
}

/// A directory of the runtime that stands for a `VOLUME` of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageVolume {
    /// Path in the container, as the image says.
    pub destination: String,
    /// Directory on the host.
    pub source: PathBuf,
}

/// A device of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// `host_path` with symlinks followed: a device, or a directory of devices.
    pub host_path: PathBuf,
    /// The device itself, or all devices below the directory. Empty = nothing is there.
    pub nodes: Vec<HostDevice>,
}

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Path on the host.
    pub path: PathBuf,
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// `c`
    Character,
    /// `b`
    Block,
}

/// What the OCI runtime of the handler can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerFacts {
    /// Version to write into the bundle. crun 1.8 rejects what is newer than `1.0.2`.
    pub oci_version: String,
    /// Whether it knows `rro` mounts, and the kernel too.
    pub recursive_read_only: Availability,
    /// Whether it joins a user namespace that exists.
    pub user_namespaces: Availability,
    /// Whether it gives processes SELinux labels. youki 0.7 does not.
    pub selinux: Availability,
    /// How it reads `SCMP_CMP_MASKED_EQ` in a system call filter.
    pub masked_equal: MaskedEqual,
    /// How it spells the propagation of the root.
    pub propagation: PropagationWords,
    /// Where it can mount the container's cgroups.
    pub cgroup_mount: CgroupMount,
    /// Who can start commands in its containers.
    pub commands: Commands,
}

/// Who can start commands in an OCI runtime's running containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commands {
    /// Its `exec`: its containers may be anything, virtual machines for example.
    ByRuntime,
    /// Its `exec`, and the monitor's `enter` in less time: crun and runc, whose containers are processes of the node in
    /// namespaces of it.
    ByBoth,
    /// The monitor's `enter` alone, because its own `exec` leaves something out: youki 0.7 starts commands without the
    /// container's filter of system calls, and outside of its user namespace.
    ByMonitor,
}

/// Who is to start the commands of a handler, as the configuration has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecBy {
    /// The OCI runtime's `exec`.
    Runtime,
    /// The monitor's `enter`.
    Monitor,
}

impl Commands {
    /// Who starts commands where the configuration says `wanted`; `None` where they could not be confined.
    pub fn choose(self, wanted: Option<ExecBy>) -> Option<ExecBy> {
        match (self, wanted) {
            (Self::ByMonitor, Some(ExecBy::Runtime)) => None,
            (_, Some(wanted)) => Some(wanted),
            (Self::ByRuntime, None) => Some(ExecBy::Runtime),
            (Self::ByBoth | Self::ByMonitor, None) => Some(ExecBy::Monitor),
        }
    }
}

/// Where an OCI runtime can mount the cgroups of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupMount {
    /// Everywhere.
    Always,
    /// Not in a PID namespace that it joins, on v1: youki 0.7, which looks for its pid of that namespace in the
    /// node's /proc.
    NotInJoinedPids,
}

/// Spelling of the propagation of a container's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropagationWords {
    /// `rshared`, `rslave`: runc and crun, where the plain words leave the mounts below as they are.
    Recursive,
    /// `shared`, `slave`, as the OCI specification has them: youki, which knows no others and means all mounts.
    Plain,
}

/// Order of mask and value in a masked comparison of a system call filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskedEqual {
    /// `value` is the mask, as in runc and crun.
    ValueIsMask,
    /// `valueTwo` is the mask: youki up to 0.7. It would otherwise let `clone` make user namespaces.
    ValueTwoIsMask,
}

impl Default for HandlerFacts {
    fn default() -> Self {
        Self {
            oci_version: "1.0.2".into(),
            recursive_read_only: Availability::Missing,
            user_namespaces: Availability::Missing,
            selinux: Availability::Present,
            masked_equal: MaskedEqual::ValueIsMask,
            propagation: PropagationWords::Recursive,
            cgroup_mount: CgroupMount::Always,
            commands: Commands::ByRuntime,
        }
    }
}

/// What the node can do, probed once at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Layout of the cgroup file systems.
    pub cgroups: CgroupVersion,
    /// Cgroup namespaces.
    pub cgroup_namespaces: Availability,
    /// Accounting of swap (`memory.memsw.*`, `memory.swap.*`).
    pub swap_accounting: Availability,
    /// The hugetlb controller.
    pub hugetlb: Availability,
    /// Sizes of huge pages, bytes; empty where they are not known.
    pub huge_page_sizes: BTreeSet<u64>,
    /// System call filters.
    pub seccomp: Availability,
    /// Mandatory access control by AppArmor.
    pub apparmor: AppArmor,
    /// Which OOM scores the daemon's children may have.
    pub oom_score: OomScore,
    /// The daemon's own bounding set: nothing else can be granted.
    pub capabilities: CapSet,
    /// All devices of `/dev`, for privileged containers.
    pub devices: Vec<HostDevice>,
    /// Number of possible CPUs.
    pub cpus: u32,
    /// Kernel version, major and minor.
    pub kernel: (u32, u32),
    /// Machine that system call filters are for.
    pub machine: Machine,
}

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It is.
    Present,
    /// It is not.
    Missing,
}

/// Layout of the cgroup file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller.
    V1,
    /// One for all.
    V2,
    /// Controllers on v1, a v2 hierarchy beside.
    Hybrid,
}

/// AppArmor on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppArmor {
    /// Not in the kernel, or off.
    Disabled,
    /// On.
    Enabled {
        /// Profile for RuntimeDefault, when one is loaded.
        default_profile: Option<String>,
        /// Names of all loaded profiles.
        loaded: BTreeSet<String>,
    },
}

/// Which OOM scores may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomScore {
    /// Any: the daemon has CAP_SYS_RESOURCE.
    Any,
    /// None below this one, the daemon's own.
    AtLeast(i32),
}

/// Processor architecture of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// 64-bit x86, with its 32-bit modes.
    X86_64,
    /// 64-bit Arm, with its 32-bit mode.
    Aarch64,
}

impl Machine {
    /// The machine that this program was compiled for.
    pub const HERE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };
}

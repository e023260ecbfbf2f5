//! Everything that a container's specification is made from, gathered from the node.

use std::path::{Path, PathBuf};

use proto::cri::{self, NamespaceMode};

use super::cri_config::{invalid, namespace_options};
use super::volumes;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::user::{GroupsPolicy, UserRequest};
use crate::host::{cdi, fs, source};
use crate::spec::seccomp::Requested;
use crate::spec::{self, MountSource, NamespacePaths, PodFiles, ResolvedDevice};
use crate::store::container::ContainerRecord;
use crate::store::sandbox::Sandbox;

/// Where the kubelet keeps seccomp profiles.
const PROFILES: &str = "/var/lib/kubelet/seccomp";
/// Largest seccomp profile, bytes.
const PROFILE_LIMIT: u64 = 4 << 20;

/// Sources of the container's mounts, in the order of the request. Its images are mounted.
pub fn mount_sources(daemon: &Daemon, record: &ContainerRecord) -> Result<Vec<MountSource>, Error> {
    let resolve = |(index, mount): (usize, &cri::Mount)| match &mount.image {
        Some(image) => volumes::image_source(&daemon.paths.image_mount(&record.id, index), mount)
            .map_err(volumes::failed(&image.image)),
        None => host_source(mount),
    };
    record.config.mounts.iter().enumerate().map(resolve).collect()
}

fn host_source(mount: &cri::Mount) -> Result<MountSource, Error> {
    let path = &mount.host_path;
    let propagates = mount.propagation != cri::MountPropagation::PropagationPrivate as i32;
    let look = if propagates { source::propagating_source } else { source::private_source };
    look(Path::new(path)).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => {
            invalid("config.mounts.host_path", format!("{error}, got {path:?}"))
        }
        _other => Error::host(format!("find the source of mount {path:?}"))(error),
    })
}

/// Devices of the request, in its order.
pub fn devices(config: &cri::ContainerConfig) -> Result<Vec<ResolvedDevice>, Error> {
    let resolve = |device: &cri::Device| {
        source::device(&device.host_path).map_err(Error::host(format!("find device {:?}", device.host_path)))
    };
    config.devices.iter().map(resolve).collect()
}

/// What the CDI devices of the request change. The files are read when a request names a device, so that a changed one
/// counts at once.
pub fn cdi(directories: &[PathBuf], config: &cri::ContainerConfig) -> Result<spec::cdi::Edits, Error> {
    let names = spec::cdi::requested(config)?;
    if names.is_empty() {
        return Ok(spec::cdi::Edits::default());
    }
    let registry = cdi::registry(directories);
    for file in registry.unread() {
        tracing::warn!(file, "a CDI specification file is not used");
    }
    Ok(spec::cdi::Edits::of(&registry, &names, source::device_node).map_err(spec::SpecError::from)?)
}

/// Content of the Localhost seccomp profile that the request names, if it names one.
pub fn seccomp_profile(config: &cri::ContainerConfig) -> Result<Option<Vec<u8>>, Error> {
    let Requested::Localhost(reference) = spec::seccomp::requested(config)? else { return Ok(None) };
    // `join` of an absolute path is that path.
    let path = Path::new(PROFILES).join(&reference);
    let unusable = |error: std::io::Error| {
        invalid("config.linux.security_context.seccomp", format!("profile {}: {error}", path.display()))
    };
    let file = std::fs::File::open(&path).map_err(unusable)?;
    fs::read_bounded(file, PROFILE_LIMIT).map(Some).map_err(unusable)
}

/// What request and image say about the user.
pub fn user_request<'a>(
    config: &'a cri::ContainerConfig,
    image_user: &'a str,
) -> Result<UserRequest<'a>, Error> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let Some(context) = context else { return Ok(UserRequest { image_user, ..Default::default() }) };
    let policy = match cri::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
        Ok(cri::SupplementalGroupsPolicy::Merge) => GroupsPolicy::Merge,
        Ok(cri::SupplementalGroupsPolicy::Strict) => GroupsPolicy::Strict,
        Err(_) => {
            let reason = format!("expected Merge or Strict, got {}", context.supplemental_groups_policy);
            return Err(invalid("config.linux.security_context.supplemental_groups_policy", reason));
        }
    };
    Ok(UserRequest {
        run_as_user: context.run_as_user.map(|user| user.value),
        run_as_username: &context.run_as_username,
        run_as_group: context.run_as_group.map(|group| group.value),
        supplemental_groups: &context.supplemental_groups,
        policy,
        image_user,
    })
}

/// Files of the namespaces that the container joins.
pub fn namespaces(
    daemon: &Daemon,
    sandbox: &Sandbox,
    config: &cri::ContainerConfig,
) -> Result<NamespacePaths, Error> {
    let pins = &sandbox.fixed.pins;
    let own = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let own = own.and_then(|context| context.namespace_options.clone()).unwrap_or_default();
    let pid = match own.pid == NamespaceMode::Target as i32 {
        true => Some(target_pid_namespace(daemon, sandbox, &own.target_id)?),
        false => pins.pid.clone(),
    };
    Ok(NamespacePaths {
        network: pins.net.clone(),
        ipc: pins.ipc.clone(),
        uts: pins.uts.clone(),
        pid,
        user: pins.user.clone(),
    })
}

fn target_pid_namespace(daemon: &Daemon, sandbox: &Sandbox, target: &str) -> Result<PathBuf, Error> {
    let field = "config.linux.security_context.namespace_options.target_id";
    let container = daemon.container(target)?;
    if container.pod_id != *sandbox.id() {
        return Err(invalid(field, format!("expected a container of this pod, {} is not", container.id)));
    }
    let pid = container.state().pid().ok_or_else(|| Error::FailedPrecondition {
        kind: "container",
        id: container.id.to_string(),
        reason: format!("its PID namespace is gone: it is {}", container.state().word()),
    })?;
    Ok(PathBuf::from(format!("/proc/{pid}/ns/pid")))
}

/// Files of the pod that containers see.
pub fn pod_files(daemon: &Daemon, sandbox: &Sandbox) -> PodFiles {
    let etc = |name: &str| Some(daemon.paths.etc(sandbox.id(), name));
    let node_ipc = namespace_options(&sandbox.fixed.config).ipc == NamespaceMode::Node as i32;
    let shm = if node_ipc { PathBuf::from("/dev/shm") } else { daemon.paths.shm(sandbox.id()) };
    PodFiles {
        resolv_conf: etc("resolv.conf"),
        hosts: etc("hosts"),
        hostname: etc("hostname"),
        shm: Some(shm),
    }
}

/// The log file of the container: below the pod's log directory, wherever the request says it is.
pub fn log_path(pod: &cri::PodSandboxConfig, config: &cri::ContainerConfig) -> Result<String, Error> {
    if pod.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(String::new());
    }
    super::cri_config::plain("config.log_path", &config.log_path)?;
    let path = Path::new(&config.log_path);
    let below = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !below {
        let reason = format!("expected a path below the pod's log directory, got {:?}", config.log_path);
        return Err(invalid("config.log_path", reason));
    }
    Ok(Path::new(&pod.log_directory).join(path).display().to_string())
}

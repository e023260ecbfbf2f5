//! CreateContainer: root file system, specification and first process of a container, ready to start.

use std::path::Path;
use std::sync::Arc;

use proto::cri::{ContainerConfig, CreateContainerRequest, CreateContainerResponse};

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::host::cgroup::container_in;
use crate::host::fs::{self, Durability, create_open_directories, write_atomic};
use crate::host::idmap::UserNamespace;
use crate::host::node;
use crate::host::oci::OciRuntime;
use crate::host::user::{self, ResolvedUser};
use crate::image::Image;
use crate::image::overlay::{Overlay, Owners, Writable};
use crate::model::container::{ContainerState, Exit};
use crate::model::id::ContainerId;
use crate::model::id_range::IdRange;
use crate::model::name::Name;
use crate::monitor::protocol::{ContainerCgroup, CreateContainer, Runtime, default_log_line_limit};
use crate::spec::{self, HandlerFacts};
use crate::steps::cri_config::{missing, plain};
use crate::steps::mapped_volumes::MappedVolumes;
use crate::steps::{
    announce, cpuset, entry, labels, limits, pod_files, resolve, signal, supervise, teardown, volumes,
};
use crate::store;
use crate::store::container::{Container, ContainerRecord, User};
use crate::store::message::digest;
use crate::store::sandbox::Sandbox;

/// Makes a container, or returns the one that an equal request has made.
pub async fn create_container(
    daemon: &Arc<Daemon>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Error> {
    let digest = digest(&request);
    let sandbox = daemon.sandbox(&request.pod_sandbox_id)?;
    let config = request.config.ok_or_else(|| missing("config"))?;
    let metadata = config.metadata.clone().ok_or_else(|| missing("config.metadata"))?;
    if metadata.name.is_empty() {
        return Err(missing("config.metadata.name"));
    }
    plain("config.metadata.name", &metadata.name)?;
    let name = Name::container(&metadata.name, sandbox.id().as_str(), metadata.attempt);
    let work = find_or_make(daemon.clone(), sandbox, name.clone(), config);
    let id = daemon.making_containers.run(name, digest, work).await?;
    Ok(CreateContainerResponse { container_id: id.to_string() })
}

async fn find_or_make(
    daemon: Arc<Daemon>,
    sandbox: Arc<Sandbox>,
    name: Name,
    config: ContainerConfig,
) -> Result<ContainerId, Error> {
    let existing = daemon.containers.all().into_iter().find(|container| container.name == name);
    if let Some(container) = existing {
        if container.record().config == config && matches!(container.state(), ContainerState::Created { .. })
        {
            return Ok(container.id.clone());
        }
        let reason = format!("is the name of container {}", container.id);
        return Err(Error::AlreadyExists { kind: "container", name: name.to_string(), reason });
    }
    let images = volumes::claim(&daemon, &config)?;
    let record = plan(&daemon, &sandbox, &images, config)?;
    let directory = daemon.paths.container(&record.id);
    let container = Container::new(record, directory.clone());
    container.keep_layers(images.lease);
    let _operation = container.operation.lock().await;
    let recorded = container.clone();
    let first = move || recorded.enter(ContainerState::Creating);
    blocking(move || pod_files::make_recorded(&directory, 0o711, first)).await??;
    daemon.containers.insert(container.id.as_str(), container.clone());
    match make(&daemon, &sandbox, &container, &images.own).await {
        Ok(()) => Ok(container.id.clone()),
        Err(error) => {
            let left = teardown::erase_container(&daemon, &container).await;
            if !left.is_empty() {
                // Shown, so that it can be removed and does not keep its name.
                supervise::end(
                    &daemon,
                    &container,
                    Exit::unseen(0, store::now(), "it could not be undone wholly"),
                );
            }
            Err(teardown::undone(error, left, format!("make container {}", container.id)))
        }
    }
}

/// Names everything that the container will own, before any of it exists.
fn plan(
    daemon: &Daemon,
    sandbox: &Sandbox,
    images: &volumes::Images,
    config: ContainerConfig,
) -> Result<ContainerRecord, Error> {
    if !sandbox.state().is_ready() {
        return Err(not_ready(sandbox));
    }
    cpuset::check(&config)?;
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if let Some(options) = security.and_then(|security| security.selinux_options.as_ref()) {
        // Before anything is mounted: the label becomes a part of the mount's options.
        spec::selinux::check("linux.security_context.selinux_options", options)?;
        labels::check_container(sandbox, &config)?;
    }
    let id = ContainerId::generate();
    let image = &images.own;
    let defaults = spec::ImageConfig::from(&image.config);
    let stop_signal = signal::stop_signal(&config, &defaults)?;
    Ok(ContainerRecord {
        pod_id: sandbox.id().clone(),
        boot_id: daemon.boot_id.clone(),
        created_at: store::now(),
        handler: daemon.oci(&sandbox.fixed.runtime_handler)?.name,
        image_id: image.id.to_string(),
        image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        layers: image.layers.clone(),
        images: images.mounted.clone(),
        volumes: spec::image_volumes(&config, &defaults)?,
        cgroups_path: container_in(&sandbox.fixed.cgroup_parent, id.as_str())
            .map_err(|error| Error::Internal(error.to_string()))?,
        log_path: resolve::log_path(&sandbox.fixed.config, &config)?,
        stop_signal,
        user: None,
        updated: None,
        state: ContainerState::Creating,
        config,
        id,
    })
}

fn not_ready(sandbox: &Sandbox) -> Error {
    Error::FailedPrecondition {
        kind: "pod sandbox",
        id: sandbox.id().to_string(),
        reason: "is not ready".into(),
    }
}

async fn make(
    daemon: &Arc<Daemon>,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    image: &Image,
) -> Result<(), Error> {
    let oci = daemon.oci(&sandbox.fixed.runtime_handler)?;
    let bundle = Bundle {
        daemon: daemon.clone(),
        sandbox: sandbox.clone(),
        container: container.clone(),
        image: spec::ImageConfig::from(&image.config),
    };
    let (user, facts, program) = {
        let (daemon, oci) = (daemon.clone(), oci.clone());
        let write = move || {
            let facts = daemon.handler_facts(&oci.name)?;
            Ok::<_, Error>((bundle.write(&facts)?, facts, daemon.programs.get(&oci.path)))
        };
        blocking(write).await??
    };
    let monitor = sandbox.monitor().ok_or_else(|| not_ready(sandbox))?;
    let created =
        monitor.create_by(request(daemon, sandbox, container, oci, &facts)?, program.as_deref()).await?;
    // A stop of the pod that came in between has not seen this container's process, or has killed it.
    if sandbox.abort.is_cancelled() || container.state().is_exited() {
        return Err(Error::Aborted(format!("making container {}", container.id)));
    }
    limits::complete(daemon, &container.record()).await?;
    container.change(|record| {
        record.user = Some(user);
        record.state = ContainerState::Created { pid: created.pid };
    })?;
    announce::container(daemon, container);
    Ok(())
}

/// What the monitor has to know.
fn request(
    daemon: &Daemon,
    sandbox: &Sandbox,
    container: &Container,
    oci: OciRuntime,
    facts: &HandlerFacts,
) -> Result<CreateContainer, Error> {
    let record = container.record();
    let entry = entry::into(daemon, &record, (&oci, facts))?;
    let runtime = oci.for_cgroup(&record.cgroups_path);
    let metadata = record.metadata();
    Ok(CreateContainer {
        id: container.id.clone(),
        bundle: daemon.paths.bundle(&container.id),
        runtime: Runtime { path: runtime.path, args: runtime.args, root: runtime.root },
        terminal: record.config.tty,
        stdin: record.config.stdin,
        stdio_owner: spec::user_namespace::ids(&sandbox.fixed.config)?.map(|ids| ids.first),
        stdin_once: record.config.stdin_once,
        log_path: (!record.log_path.is_empty()).then(|| record.log_path.clone().into()),
        log_line_limit: default_log_line_limit(),
        cgroup: supervised(daemon, sandbox, &record)?,
        kill_cgroup: shares_processes(sandbox, &record),
        copy_of: None,
        entry,
        exit_file: store::container::exit_path(&daemon.paths.container(&container.id)),
        identity: serde_json::json!({
            "name": metadata.name,
            "attempt": metadata.attempt,
            "pod": sandbox.fixed.metadata().name,
            "namespace": sandbox.fixed.metadata().namespace,
            "podUid": sandbox.fixed.metadata().uid,
            "image": record.image_id,
            "configDigest": digest(&record.config),
        }),
    })
}

/// What the monitor looks at in the container's cgroup. systemd may take it away before the monitor can.
fn supervised(
    daemon: &Daemon,
    sandbox: &Sandbox,
    record: &ContainerRecord,
) -> Result<ContainerCgroup, Error> {
    let cgroup = daemon.cgroup(&record.cgroups_path)?;
    let pod = daemon.cgroup(&sandbox.fixed.cgroup_parent)?;
    let fleeting = !record.cgroups_path.starts_with('/');
    Ok(ContainerCgroup {
        oom_counter: cgroup.oom_file(),
        pod_oom_counter: if fleeting { pod.oom_file_of_all() } else { None },
        directories: cgroup.process_dirs(),
    })
}

/// Whether processes of the container outlive its first one: not where that is the first of a PID namespace.
fn shares_processes(sandbox: &Sandbox, record: &ContainerRecord) -> bool {
    use proto::cri::NamespaceMode::{Container, Pod};
    let context = record.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let own = context.and_then(|context| context.namespace_options.as_ref()).map_or(0, |options| options.pid);
    let pod = crate::steps::cri_config::namespace_options(&sandbox.fixed.config).pid;
    !(own == Container as i32 || own == Pod as i32 && pod == Container as i32)
}

/// The OCI bundle to be written.
struct Bundle {
    daemon: Arc<Daemon>,
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
    image: spec::ImageConfig,
}

impl Bundle {
    /// Mounts the root, makes the volumes and writes the specification. Blocks.
    fn write(&self, facts: &HandlerFacts) -> Result<User, Error> {
        let record = self.container.record();
        let namespace = self.user_namespace()?;
        let owners = namespace.as_ref().map(|(namespace, ids)| Owners { namespace, ids: *ids });
        let labels = labels::of_container(&self.sandbox, &record.config);
        let label = labels.as_ref().map(|labels| labels.mount.as_str());
        let rootfs = self.mount_root(&record, owners, label)?;
        volumes::mount_images(&self.daemon, &record, owners, label)?;
        let user = self.resolve_user(&rootfs, &record.config)?;
        if !record.log_path.is_empty() {
            let parent = Path::new(&record.log_path).parent().unwrap_or(Path::new("/"));
            create_open_directories(parent).map_err(Error::host(format!("make {}", parent.display())))?;
        }
        let cdi = resolve::cdi(&self.daemon.config.cdi_spec_dirs, &record.config)?;
        let spec = self.specification(&record, &rootfs, &user, (&cdi, facts))?;
        volumes::fill(&self.daemon, &record, &self.sandbox, &rootfs)?;
        label.map_or(Ok(()), |label| labels::apply(&self.daemon, &record, label))?;
        let path = self.daemon.paths.bundle(&self.container.id).join("config.json");
        let json = serde_json::to_vec(&spec).map_err(|error| Error::Internal(error.to_string()))?;
        write_atomic(&path, &json, 0o600, Durability::Cached)
            .map_err(Error::host(format!("write {}", path.display())))?;
        let mut groups = user.additional_gids;
        groups.extend(cdi.additional_gids);
        Ok(User { uid: user.uid, gid: user.gid, groups })
    }

    fn mount_root(
        &self,
        record: &ContainerRecord,
        owners: Option<Owners<'_>>,
        label: Option<&str>,
    ) -> Result<std::path::PathBuf, Error> {
        let own = self.daemon.paths.container(&record.id);
        let bundle = self.daemon.paths.bundle(&record.id);
        let rootfs = self.daemon.paths.rootfs(&record.id);
        let (upper, work) = (own.join("upper"), own.join("work"));
        for (path, mode) in [(&bundle, 0o711), (&rootfs, 0o755)] {
            pod_files::make_directory(path, mode).map_err(Error::host(format!("make {}", path.display())))?;
        }
        let layers: Vec<_> = record.layers.iter().map(|key| self.daemon.images.layer_path(key)).collect();
        let empty = self.daemon.images.empty_layer();
        let writable = Some(Writable { upper: &upper, work: &work });
        let overlay = Overlay { layers: &layers, empty: &empty, writable, owners, label };
        overlay.create_writable()?;
        overlay.mount(&rootfs)?;
        Ok(rootfs)
    }

    /// The pod's own user namespace.
    fn user_namespace(&self) -> Result<Option<(UserNamespace, IdRange)>, Error> {
        let fixed = &self.sandbox.fixed;
        let (Some(pin), Some(ids)) = (&fixed.pins.user, spec::user_namespace::ids(&fixed.config)?) else {
            return Ok(None);
        };
        let opened = UserNamespace::open(pin).map_err(Error::host(format!("open {}", pin.display())))?;
        Ok(Some((opened, ids)))
    }

    fn mount_sources(&self, record: &ContainerRecord) -> Result<Vec<spec::MountSource>, Error> {
        let sources = resolve::mount_sources(&self.daemon, record)?;
        let Some((namespace, ids)) = self.user_namespace()? else { return Ok(sources) };
        let volumes = self.daemon.paths.mapped_volumes(&record.id);
        MappedVolumes { namespace: &namespace, ids, directory: &volumes }
            .attach(&record.config.mounts, sources)
    }

    fn resolve_user(&self, rootfs: &Path, config: &ContainerConfig) -> Result<ResolvedUser, Error> {
        let root = fs::open_root(rootfs).map_err(Error::host(format!("open {}", rootfs.display())))?;
        Ok(user::resolve(root, &resolve::user_request(config, &self.image.user)?)?)
    }

    fn specification(
        &self,
        record: &ContainerRecord,
        rootfs: &Path,
        user: &ResolvedUser,
        (cdi, handler): (&spec::cdi::Edits, &HandlerFacts),
    ) -> Result<spec::oci::Spec, Error> {
        let config = &record.config;
        let seccomp_profile = resolve::seccomp_profile(config)?;
        let labels = labels::of_container(&self.sandbox, config);
        let inputs = spec::Inputs {
            config,
            sandbox: &self.sandbox.fixed.config,
            image: &self.image,
            ids: spec::Ids { container: &record.id, pod: &record.pod_id },
            user: spec::ProcessUser {
                uid: user.uid,
                gid: user.gid,
                additional_gids: &user.additional_gids,
                home: &user.home,
            },
            hostname: &pod_files::hostname(&self.sandbox.fixed.config),
            namespaces: &resolve::namespaces(&self.daemon, &self.sandbox, config)?,
            cgroups_path: &record.cgroups_path,
            pids_limit: None,
            rootfs,
            pod_files: &resolve::pod_files(&self.daemon, &self.sandbox),
            mount_sources: &self.mount_sources(record)?,
            image_volumes: &volumes::anonymous(&self.daemon, record),
            devices: &resolve::devices(config)?,
            cdi,
            seccomp_profile: seccomp_profile.as_deref(),
            selinux: labels.as_ref(),
            node: &node::current(&self.daemon.node),
            handler,
        };
        Ok(spec::generate(&inputs)?)
    }
}

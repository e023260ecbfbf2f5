//! What every RPC gets: the configuration, the records, and the parts of the host.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;

use crate::config::{Config, HandlerConfig, RegistryConfig};
use crate::detached::blocking;
use crate::error::{Error, chain};
use crate::events::Events;
use crate::host::cgroup::{Cgroup, CgroupPath, Layout};
use crate::host::cni::{self, Cni};
use crate::host::fs::create_open_directories;
use crate::host::handlers::Handlers;
use crate::host::idmap::UserNamespace;
use crate::host::node;
use crate::host::oci::OciRuntime;
use crate::host::program::ProgramCopies;
use crate::host::selinux;
use crate::image::overlay::{Overlay, Owners};
use crate::image::{self, HostConfig, ImageStore};
use crate::model::id::{ContainerId, PodId};
use crate::model::id_range::IdRange;
use crate::operations::Operations;
use crate::paths::Paths;
use crate::spec::selinux::Contexts;
use crate::spec::{Availability, HandlerFacts, NodeFacts};
use crate::store;
use crate::store::container::Container;
use crate::store::index::{Ambiguous, Index};
use crate::store::sandbox::Sandbox;

/// Name of the runtime, as Version reports it.
pub const RUNTIME_NAME: &str = "berth";

/// The daemon.
pub struct Daemon {
    /// The configuration.
    pub config: Config,
    /// Where everything is.
    pub paths: Paths,
    /// Identity of this boot.
    pub boot_id: String,
    /// Pod sandboxes.
    pub sandboxes: Index<Sandbox>,
    /// Containers.
    pub containers: Index<Container>,
    /// Sandboxes being made.
    pub making_sandboxes: Operations<PodId>,
    /// Containers being made.
    pub making_containers: Operations<ContainerId>,
    /// Who listens to what happens to them.
    pub events: Events,
    /// Images and layers.
    pub images: ImageStore,
    /// Network plugins.
    pub cni: Cni,
    /// cgroup hierarchies of the node.
    pub cgroups: Arc<Layout>,
    /// What the specification must know about the node.
    pub node: NodeFacts,
    /// What SELinux gives containers, where it is on.
    pub selinux: Option<Contexts>,
    /// Held while a pod's labels are chosen, until its record says which.
    pub choosing_labels: tokio::sync::Mutex<()>,
    /// Copies of the OCI runtimes that run from memory.
    pub programs: ProgramCopies,
    /// What each handler's OCI runtime can do.
    pub handlers: Handlers,
    /// The node's pod CIDRs, as the kubelet gave them; empty before that.
    pub pod_cidr: Mutex<String>,
    /// Held by the one task that walks writable layers.
    pub layer_walk: Arc<Mutex<()>>,
    /// Whether the kernel can serve pods with user namespaces; asked when it is first needed.
    user_namespaces: tokio::sync::OnceCell<Availability>,
    _lock: std::fs::File,
}

impl Daemon {
    /// Takes the root directory, and looks at the node. One daemon owns a root directory at a time.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        let paths = Paths::new(&config);
        for directory in [paths.pods(), paths.containers(), paths.pod_states(), paths.bundles()] {
            make_directories(&directory).with_context(|| format!("make {}", directory.display()))?;
        }
        create_open_directories(&config.netns_dir)
            .with_context(|| format!("make {}", config.netns_dir.display()))?;
        let lock = lock(&paths.root().join("lock"))?;
        let cgroups = Arc::new(Layout::detect().context("look at the cgroup hierarchies")?);
        let programs = ProgramCopies::default();
        Ok(Self {
            boot_id: store::boot_id().context("read the boot id")?,
            sandboxes: Index::default(),
            containers: Index::default(),
            making_sandboxes: Operations::new("pod sandbox"),
            making_containers: Operations::new("container"),
            events: Events::default(),
            images: ImageStore::open(paths.root(), image_config(&config))?,
            cni: Cni::new(cni_config(&config)),
            node: node::facts(&cgroups),
            selinux: selinux::contexts(),
            choosing_labels: tokio::sync::Mutex::default(),
            handlers: Handlers::ask(programs_of(&config), &programs),
            programs,
            cgroups,
            layer_walk: Arc::default(),
            user_namespaces: tokio::sync::OnceCell::new(),
            paths,
            config,
            pod_cidr: Mutex::default(),
            _lock: lock,
        })
    }

    /// The sandbox whose id, or unique beginning of it, is `id`.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        self.find_sandbox(id)?.ok_or_else(|| Error::NotFound { kind: "pod sandbox", id: id.into() })
    }

    /// The container whose id, or unique beginning of it, is `id`.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.find_container(id)?.ok_or_else(|| Error::NotFound { kind: "container", id: id.into() })
    }

    /// As [`Daemon::sandbox`], for a caller to whom one that is not there is no error.
    pub fn find_sandbox(&self, id: &str) -> Result<Option<Arc<Sandbox>>, Error> {
        self.sandboxes.look_up(id).map_err(|Ambiguous| ambiguous("pod_sandbox_id", id))
    }

    /// As [`Daemon::container`], for a caller to whom one that is not there is no error.
    pub fn find_container(&self, id: &str) -> Result<Option<Arc<Container>>, Error> {
        self.containers.look_up(id).map_err(|Ambiguous| ambiguous("container_id", id))
    }

    /// Containers of a pod.
    pub fn containers_of(&self, pod: &PodId) -> Vec<Arc<Container>> {
        self.containers.matching(|container| container.pod_id == *pod)
    }

    /// Whether the kernel makes user namespaces, and shows layers with their owners. Tried once.
    pub async fn user_namespaces(&self) -> Availability {
        let (layer, empty) = (self.paths.pods(), self.images.empty_layer());
        let ask = || async {
            match blocking(move || try_owners(layer, &empty)).await {
                Ok(Ok(())) => Availability::Present,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "pods cannot have user namespaces here");
                    Availability::Missing
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "user namespaces cannot be tried");
                    Availability::Missing
                }
            }
        };
        *self.user_namespaces.get_or_init(ask).await
    }

    /// The OCI runtime of a handler; the empty name is the default one.
    pub fn oci(&self, handler: &str) -> Result<OciRuntime, Error> {
        let name = if handler.is_empty() { &self.config.runtime.default_handler } else { handler };
        let HandlerConfig { path, args, root, exec } =
            self.config.runtime.handlers.get(name).ok_or_else(|| Error::InvalidArgument {
                field: "runtime_handler",
                reason: format!("no handler named {name:?} is configured"),
            })?;
        let root = root.clone().unwrap_or_else(|| self.paths.oci_root(name));
        Ok(OciRuntime { name: name.to_string(), path: path.clone(), args: args.clone(), root, exec: *exec })
    }

    /// What the OCI runtime of a handler can do. Blocks where it has to be asked.
    pub fn handler_facts(&self, name: &str) -> Result<HandlerFacts, Error> {
        self.handlers.facts(name, &self.programs).map_err(|error| Error::FailedPrecondition {
            kind: "runtime handler",
            id: name.into(),
            reason: format!("cannot be used: {error}"),
        })
    }

    /// The cgroup at `path`, as a record or the OCI runtime names it.
    pub fn cgroup(&self, path: &str) -> Result<Cgroup, Error> {
        let path = CgroupPath::recorded(path).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(Cgroup::new(&self.cgroups, path))
    }
}

fn ambiguous(field: &'static str, id: &str) -> Error {
    Error::InvalidArgument { field, reason: format!("ambiguous id prefix {id:?}: several ids begin so") }
}

fn try_owners(layer: PathBuf, empty: &Path) -> std::io::Result<()> {
    let ids = IdRange { first: 65536, length: 65536 };
    let namespace = UserNamespace::new(ids)?;
    let owners = Some(Owners { namespace: &namespace, ids });
    Overlay { layers: &[layer], empty, writable: None, owners, label: None }.probe()
}

fn programs_of(config: &Config) -> BTreeMap<String, PathBuf> {
    config.runtime.handlers.iter().map(|(name, handler)| (name.clone(), handler.path.clone())).collect()
}

fn image_config(config: &Config) -> image::Config {
    let host = |registry: &RegistryConfig| {
        let host = HostConfig { mirrors: registry.mirrors.clone(), plain_http: registry.plain_http };
        (registry.host.clone(), host)
    };
    let registries = image::RegistryConfig {
        hosts: config.image.registry.iter().map(host).collect(),
        stall_timeout_seconds: config.image.no_progress_s,
        ..Default::default()
    };
    image::Config { registries, parallel_layers: config.image.concurrent_downloads, ..Default::default() }
}

fn cni_config(config: &Config) -> cni::Config {
    cni::Config {
        conf_dir: config.cni.conf_dir.clone(),
        bin_dirs: config.cni.bin_dirs.clone(),
        cache_dir: config.cni.cache_dir.clone(),
        deadline: Duration::from_secs(config.cni.deadline_s),
    }
}

/// Makes a directory that is not listable by others but traversable, as user namespaces need it.
fn make_directories(path: &Path) -> std::io::Result<()> {
    for directory in [path.parent(), Some(path)].into_iter().flatten() {
        std::fs::create_dir_all(directory)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711))?;
    }
    Ok(())
}

/// Takes the lock that says which daemon owns a root directory; it goes with the process.
fn lock(path: &Path) -> anyhow::Result<std::fs::File> {
    let file = std::fs::File::create(path).with_context(|| format!("open {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("{} is held: another cri-server owns this root", path.display()))?;
    Ok(file)
}

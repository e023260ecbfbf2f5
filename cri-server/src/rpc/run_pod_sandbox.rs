//! RunPodSandbox: namespaces, network and files of a pod, without a pause container.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::cri::{NamespaceMode, PodSandboxConfig, RunPodSandboxRequest, RunPodSandboxResponse};
use rustix::io::Errno;

use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::{Error, chain};
use crate::host::cni::{Attachment, Resolver};
use crate::host::monitor::{Monitor, MonitorError};
use crate::model::id::PodId;
use crate::model::name::Name;
use crate::model::sandbox::{Pins, SandboxState};
use crate::monitor::protocol::{NamespaceKind, NewNamespace, PodSetup};
use crate::spec::{self, Availability, SpecError};
use crate::steps::cri_config::{check_sandbox, invalid, missing, namespace_options, port_mappings};
use crate::steps::{announce, labels, pod_files, supervise, teardown};
use crate::store;
use crate::store::message::digest;
use crate::store::sandbox::{PodResources, Sandbox, SandboxRecord};

/// Makes a pod sandbox, or returns the one that an equal request has made.
pub async fn run_pod_sandbox(
    daemon: &Arc<Daemon>,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Error> {
    let config = request.config.as_ref().ok_or_else(|| missing("config"))?;
    check_sandbox(config)?;
    spec::sysctl::effective(config)?;
    let handler = daemon.oci(&request.runtime_handler)?;
    if spec::user_namespace::ids(config)?.is_some() {
        user_namespaces(daemon, &handler.name).await?;
    }
    let metadata = config.metadata.clone().unwrap_or_default();
    let name = Name::sandbox(&metadata.name, &metadata.namespace, &metadata.uid, metadata.attempt);
    let digest = digest(&request);
    let work = find_or_make(daemon.clone(), name.clone(), request);
    let id = daemon.making_sandboxes.run(name, digest, work).await?;
    Ok(RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}

/// Refuses a pod with a user namespace where the handler or the kernel cannot serve it: it would be served with less.
async fn user_namespaces(daemon: &Arc<Daemon>, handler: &str) -> Result<(), Error> {
    let (asking, name) = (daemon.clone(), handler.to_owned());
    let facts = blocking(move || asking.handler_facts(&name)).await??;
    let lacking = match facts.user_namespaces {
        Availability::Present if daemon.user_namespaces().await == Availability::Present => {
            return Ok(());
        }
        Availability::Present => "the kernel cannot show layers with other owners".into(),
        Availability::Missing => format!("the OCI runtime of handler {handler:?} has none"),
    };
    Err(SpecError::Unsupported { feature: "a user namespace".into(), reason: lacking }.into())
}

async fn find_or_make(
    daemon: Arc<Daemon>,
    name: Name,
    request: RunPodSandboxRequest,
) -> Result<PodId, Error> {
    let config = request.config.unwrap_or_default();
    let existing = daemon.sandboxes.all().into_iter().find(|sandbox| sandbox.name == name);
    if let Some(sandbox) = existing {
        let equal =
            sandbox.fixed.config == config && sandbox.fixed.runtime_handler == request.runtime_handler;
        if equal && sandbox.state().is_ready() {
            return Ok(sandbox.id().clone());
        }
        let reason = format!("is the name of pod sandbox {}", sandbox.id());
        return Err(Error::AlreadyExists { kind: "pod sandbox", name: name.to_string(), reason });
    }
    let choosing = match daemon.selinux {
        Some(_) => Some(daemon.choosing_labels.lock().await),
        None => None,
    };
    let record = plan(&daemon, config, request.runtime_handler)?;
    let directory = daemon.paths.pod(&record.id);
    let sandbox = Sandbox::new(record, directory.clone());
    let _operation = sandbox.operation.lock().await;
    let recorded = sandbox.clone();
    let first = move || recorded.enter(SandboxState::Creating);
    blocking(move || pod_files::make_recorded(&directory, 0o700, first)).await??;
    daemon.sandboxes.insert(sandbox.id().as_str(), sandbox.clone());
    drop(choosing);
    match make(&daemon, &sandbox).await {
        Ok(()) => Ok(sandbox.id().clone()),
        Err(error) => {
            let mut left = teardown::erase_sandbox(&daemon, &sandbox).await;
            if !left.is_empty()
                && let Err(unwritten) = sandbox.end()
            {
                left.push(chain(&unwritten));
            }
            Err(teardown::undone(error, left, format!("make pod sandbox {}", sandbox.id())))
        }
    }
}

/// Names everything that the sandbox will own, before any of it exists.
fn plan(daemon: &Daemon, config: PodSandboxConfig, runtime_handler: String) -> Result<SandboxRecord, Error> {
    let id = PodId::generate();
    let options = namespace_options(&config);
    let own = |mode: i32| mode == NamespaceMode::Pod as i32;
    let network = own(options.network);
    let pins = Pins {
        net: network.then(|| daemon.paths.netns(&id)),
        uts: network.then(|| daemon.paths.pin(&id, "uts")),
        ipc: own(options.ipc).then(|| daemon.paths.pin(&id, "ipc")),
        pid: own(options.pid).then(|| daemon.paths.pin(&id, "pid")),
        user: spec::user_namespace::ids(&config)?.map(|_| daemon.paths.pin(&id, "user")),
    };
    let wanted = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
    let cgroup = &daemon.config.cgroup;
    let cgroup_parent = match wanted {
        "" => cgroup.driver.own_parent(cgroup.parent(), id.as_str()),
        path => cgroup.driver.given_parent(path),
    };
    let cgroup_parent =
        cgroup_parent.map_err(|error| invalid("config.linux.cgroup_parent", error.to_string()))?;
    Ok(SandboxRecord {
        id,
        boot_id: daemon.boot_id.clone(),
        created_at: store::now(),
        runtime_handler,
        pins,
        cgroup_parent,
        resources: told(&config),
        selinux: labels::of_pod(daemon, &config)?,
        state: SandboxState::Creating,
        config,
    })
}

/// What the kubelet says of the pod's resources. It has given them to the pod's cgroup itself: a change starts from them.
fn told(config: &PodSandboxConfig) -> PodResources {
    let linux = config.linux.as_ref();
    PodResources {
        sum: linux.and_then(|linux| linux.resources.clone()),
        overhead: linux.and_then(|linux| linux.overhead.clone()),
    }
}

async fn make(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let (paths, id, config) = (daemon.paths.clone(), sandbox.id().clone(), sandbox.fixed.config.clone());
    blocking(move || pod_files::prepare(&paths, &id, &config)).await??;
    let spawned = Monitor::spawn(&daemon.config.monitor, &setup(daemon, sandbox)?).await;
    let monitor = spawned.map_err(refused_sysctl)?;
    supervise::follow(daemon, sandbox, monitor);
    let ips = attach(daemon, sandbox).await?;
    if sandbox.abort.is_cancelled() {
        return Err(Error::Aborted(format!("making pod sandbox {}", sandbox.id())));
    }
    let (paths, id, config) = (daemon.paths.clone(), sandbox.id().clone(), sandbox.fixed.config.clone());
    let hosts_ips = ips.clone();
    let selinux = sandbox.fixed.selinux.clone();
    blocking(move || {
        pod_files::write_hosts(&paths, &id, &config, &hosts_ips)?;
        selinux.map_or(Ok(()), |labels| pod_files::label(&paths, &id, &labels.mount))
    })
    .await??;
    sandbox.enter(SandboxState::Ready { ips })?;
    announce::sandbox(daemon, sandbox);
    // A monitor that died before this had nobody to tell.
    match sandbox.monitor() {
        Some(_) => Ok(()),
        None => Err(Error::Aborted(format!("making pod sandbox {}: its monitor died", sandbox.id()))),
    }
}

/// What the kernel will not have as the value of a sysctl is the request's fault; other failures are as they are.
fn refused_sysctl(error: MonitorError) -> Error {
    let MonitorError::Setup(failure) = &error else { return error.into() };
    let refusals = [Errno::INVAL, Errno::RANGE, Errno::NOENT].map(|errno| errno.raw_os_error());
    let refused = |errno: &i32| failure.message.ends_with(&format!("(os error {errno})"));
    if failure.message.starts_with("setting sysctl ") && refusals.iter().any(refused) {
        return invalid("config.linux.sysctls", failure.message.clone());
    }
    error.into()
}

/// Connects the pod to the network. Returns its addresses, the primary one first.
async fn attach(daemon: &Daemon, sandbox: &Sandbox) -> Result<Vec<String>, Error> {
    let Some(netns) = &sandbox.fixed.pins.net else { return Ok(Vec::new()) };
    let metadata = sandbox.fixed.metadata();
    let config = &sandbox.fixed.config;
    let attachment = Attachment {
        pod: sandbox.id().clone(),
        netns: netns.clone(),
        ifname: "eth0".into(),
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        annotations: config.annotations.clone(),
        port_mappings: port_mappings(config)?,
        dns: config.dns_config.clone().map(|dns| Resolver {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        cgroup_path: sandbox.fixed.cgroup_parent.clone(),
        capability_args: BTreeMap::new(),
    };
    let attached = daemon.cni.add(&attachment, &sandbox.abort).await?;
    Ok(attached.ips.iter().map(ToString::to_string).collect())
}

fn setup(daemon: &Daemon, sandbox: &Sandbox) -> Result<PodSetup, Error> {
    let pins = &sandbox.fixed.pins;
    let config = &sandbox.fixed.config;
    let kinds = [
        (NamespaceKind::Net, &pins.net),
        (NamespaceKind::Uts, &pins.uts),
        (NamespaceKind::Ipc, &pins.ipc),
        (NamespaceKind::Pid, &pins.pid),
        (NamespaceKind::User, &pins.user),
    ];
    let namespaces = kinds
        .into_iter()
        .filter_map(|(kind, pin)| pin.clone().map(|pin| NewNamespace { kind, pin }))
        .collect();
    Ok(PodSetup {
        pod_id: sandbox.id().clone(),
        dir: daemon.paths.pod_state(sandbox.id()),
        namespaces,
        ids: spec::user_namespace::ids(config)?,
        hostname: pins.uts.as_ref().map(|_| pod_files::hostname(config)),
        sysctls: spec::sysctl::effective(config)?,
    })
}

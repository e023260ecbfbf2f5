//! Status: RuntimeReady and NetworkReady, the handlers and what they can do.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use proto::cri::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest,
    StatusResponse,
};

use crate::config::HandlerConfig;
use crate::daemon::Daemon;
use crate::error::{Error, chain};
use crate::spec::{Availability, HandlerFacts};

/// Status of the runtime.
pub async fn status(daemon: &Arc<Daemon>, request: StatusRequest) -> Result<StatusResponse, Error> {
    let network = daemon.cni.status().await.map(drop).map_err(|error| chain(&error));
    let user_namespaces = daemon.user_namespaces().await;
    let condition = |kind: &str, problem: Option<(&str, String)>| {
        let status = problem.is_none();
        let (reason, message) = problem.unwrap_or_default();
        RuntimeCondition { r#type: kind.into(), status, reason: reason.into(), message }
    };
    let conditions = vec![
        condition("RuntimeReady", runtime_problem(daemon).map(|message| ("OCIRuntimeMissing", message))),
        condition("NetworkReady", network.clone().err().map(|error| ("NetworkPluginNotReady", error))),
    ];
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info: if request.verbose { info(daemon, &network) } else { BTreeMap::new() },
        runtime_handlers: handlers(daemon, user_namespaces),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            mount_options: true,
            user_namespaces_host_network: user_namespaces == Availability::Present,
        }),
    })
}

/// The default handler's program must be there; the others are missed by the pods that name them.
fn runtime_problem(daemon: &Daemon) -> Option<String> {
    let oci = daemon.oci("").ok()?;
    let usable = rustix::fs::access(&oci.path, rustix::fs::Access::EXEC_OK);
    usable.err().map(|error| format!("OCI runtime {} of handler {:?}: {error}", oci.path.display(), oci.name))
}

/// Every handler, and the default one under the empty name too, as the kubelet looks it up.
fn handlers(daemon: &Daemon, node: Availability) -> Vec<RuntimeHandler> {
    let known = daemon.handlers.last_known();
    let default = known.get(&daemon.config.runtime.default_handler).map(|facts| ("", facts));
    let named = known.iter().map(|(name, facts)| (name.as_str(), facts));
    let handler = |(name, facts): (&str, &HandlerFacts)| RuntimeHandler {
        name: name.into(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: facts.recursive_read_only == Availability::Present,
            user_namespaces: node == Availability::Present && facts.user_namespaces == Availability::Present,
        }),
    };
    default.into_iter().chain(named).map(handler).collect()
}

/// JSON texts, under the keys that people know from other runtimes where there are such.
fn info(daemon: &Daemon, network: &Result<(), String>) -> BTreeMap<String, String> {
    let config = &daemon.config;
    let handler = |(name, handler): (&String, &HandlerConfig)| {
        let root = handler.root.clone().unwrap_or_else(|| daemon.paths.oci_root(name));
        (
            name.clone(),
            serde_json::json!({"path": handler.path, "args": handler.args, "root": root, "exec": handler.exec}),
        )
    };
    let handlers: BTreeMap<_, _> = config.runtime.handlers.iter().map(handler).collect();
    let config = serde_json::json!({
        "rootDir": daemon.paths.root(),
        "stateDir": daemon.paths.state(),
        "socket": config.socket,
        "monitor": config.monitor,
        "netnsDir": config.netns_dir,
        "cniConfDir": config.cni.conf_dir,
        "cniBinDirs": config.cni.bin_dirs,
        "cgroupDriver": config.cgroup.driver.word(),
        "cgroupParent": config.cgroup.parent(),
        "defaultRuntimeHandler": config.runtime.default_handler,
        "runtimeHandlers": handlers,
        "podCIDR": *daemon.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner),
        "pods": daemon.sandboxes.len(),
        "containers": daemon.containers.len(),
    });
    let network = serde_json::json!(network.as_ref().err().map_or("OK", String::as_str));
    BTreeMap::from([
        ("config".to_string(), config.to_string()),
        ("lastCNILoadStatus".to_string(), network.to_string()),
    ])
}

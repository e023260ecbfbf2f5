//! Status: RuntimeReady and NetworkReady, the handlers and what they can do.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::cri::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest,
    StatusResponse,
};

use crate::daemon::Daemon;
use crate::error::{Error, chain};
use crate::spec::{Availability, HandlerFacts};

/// Status of the runtime.
pub async fn status(daemon: &Arc<Daemon>, request: StatusRequest) -> Result<StatusResponse, Error> {
    let network = daemon.cni.status().await;
    let user_namespaces = daemon.user_namespaces().await;
    let condition = |kind: &str, problem: Option<(&str, String)>| {
        let status = problem.is_none();
        let (reason, message) = problem.unwrap_or_default();
        RuntimeCondition { r#type: kind.into(), status, reason: reason.into(), message }
    };
    let conditions = vec![
        condition("RuntimeReady", runtime_problem(daemon).map(|message| ("OCIRuntimeMissing", message))),
        condition("NetworkReady", network.err().map(|error| ("NetworkPluginNotReady", chain(&error)))),
    ];
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info: if request.verbose { info(daemon) } else { BTreeMap::new() },
        runtime_handlers: handlers(daemon, user_namespaces),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: user_namespaces == Availability::Present,
            ..Default::default()
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
    let default = daemon.handlers.get(&daemon.config.runtime.default_handler).map(|facts| ("", facts));
    let named = daemon.handlers.iter().map(|(name, facts)| (name.as_str(), facts));
    let handler = |(name, facts): (&str, &HandlerFacts)| RuntimeHandler {
        name: name.into(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: facts.recursive_read_only == Availability::Present,
            user_namespaces: node == Availability::Present && facts.user_namespaces == Availability::Present,
        }),
    };
    default.into_iter().chain(named).map(handler).collect()
}

fn info(daemon: &Daemon) -> BTreeMap<String, String> {
    let config = serde_json::json!({
        "rootDir": daemon.paths.root(),
        "stateDir": daemon.paths.state(),
        "cniConfDir": daemon.config.cni.conf_dir,
        "cgroupDriver": daemon.config.cgroup.driver,
        "defaultRuntimeHandler": daemon.config.runtime.default_handler,
        "pods": daemon.sandboxes.len(),
        "containers": daemon.containers.len(),
    });
    BTreeMap::from([("config".to_string(), config.to_string())])
}

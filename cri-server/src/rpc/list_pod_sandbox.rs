//! ListPodSandbox.

use proto::cri::{ListPodSandboxRequest, ListPodSandboxResponse, PodSandboxFilter};

use crate::daemon::Daemon;
use crate::model::sandbox::SandboxState;
use crate::steps::convert;
use crate::store::sandbox::Sandbox;

/// Pod sandboxes that pass the filter, the newest first.
pub fn list_pod_sandbox(daemon: &Daemon, request: &ListPodSandboxRequest) -> ListPodSandboxResponse {
    let filter = request.filter.clone().unwrap_or_default();
    let mut sandboxes = daemon.sandboxes.all();
    sandboxes.retain(|sandbox| sandbox.state() != SandboxState::Creating && passes(&filter, sandbox));
    sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.fixed.created_at));
    ListPodSandboxResponse { items: sandboxes.iter().map(|sandbox| convert::sandbox_item(sandbox)).collect() }
}

fn passes(filter: &PodSandboxFilter, sandbox: &Sandbox) -> bool {
    sandbox.id().as_str().starts_with(&filter.id)
        && filter.state.is_none_or(|state| state.state == convert::sandbox_state(sandbox) as i32)
        && convert::selects(&filter.label_selector, &sandbox.fixed.config.labels)
}

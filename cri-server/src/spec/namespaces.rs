//! Which namespaces a container makes, joins, or leaves as the node's (DESIGN 3.1).

use std::path::PathBuf;

use super::oci::{Namespace, NamespaceKind};
use super::request::{PidMode, Request, Shared};
use super::{Availability, SpecError};

/// The list. A kind that is absent is the node's: the namespace that the daemon itself was started in.
pub(super) fn list(request: &Request<'_>) -> Result<Vec<Namespace>, SpecError> {
    let paths = request.inputs.namespaces;
    let mut list = Vec::new();
    // Joined first, so that what follows is done with its rights.
    if request.modes.user.is_some() {
        list.push(join(NamespaceKind::User, &paths.user, "the pod's user namespace")?);
    }
    list.push(new(NamespaceKind::Mount));
    if request.modes.network == Shared::Pod {
        list.push(join(NamespaceKind::Network, &paths.network, "the pod's network namespace")?);
        list.push(join(NamespaceKind::Uts, &paths.uts, "the pod's UTS namespace")?);
    }
    if request.modes.ipc == Shared::Pod {
        list.push(join(NamespaceKind::Ipc, &paths.ipc, "the pod's IPC namespace")?);
    }
    match request.modes.pid {
        PidMode::Pod => list.push(join(NamespaceKind::Pid, &paths.pid, "the pod's PID namespace")?),
        PidMode::Target => list.push(join(NamespaceKind::Pid, &paths.pid, "the target's PID namespace")?),
        PidMode::Container => list.push(new(NamespaceKind::Pid)),
        PidMode::Node => {}
    }
    list.extend(cgroup(request));
    Ok(list)
}

/// Hides the path of the container's cgroup, on v1 too. A privileged container works with the node's cgroups.
fn cgroup(request: &Request<'_>) -> Option<Namespace> {
    let available = request.inputs.node.cgroup_namespaces == Availability::Present;
    (available && !request.privileged()).then(|| new(NamespaceKind::Cgroup))
}

fn new(kind: NamespaceKind) -> Namespace {
    Namespace { kind, path: None }
}

fn join(kind: NamespaceKind, path: &Option<PathBuf>, fact: &'static str) -> Result<Namespace, SpecError> {
    // Without its path the runtime would make a new namespace where a shared one is meant.
    let path = path.clone().ok_or(SpecError::MissingFact { fact })?;
    Ok(Namespace { kind, path: Some(path) })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Case, user_namespace};
    use super::*;
    use proto::cri::NamespaceMode::{self, Container, Node, Pod, Target};

    /// `+kind` for a new namespace, `=kind` for a joined one.
    fn summary(case: &Case) -> Result<String, SpecError> {
        let inputs = case.inputs();
        let list = list(&Request::new(&inputs)?)?;
        let name = |n: &Namespace| {
            let sign = if n.path.is_some() { '=' } else { '+' };
            format!("{sign}{}", serde_json::to_value(n.kind).unwrap().as_str().unwrap())
        };
        Ok(list.iter().map(name).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_table_of_namespaces() {
        let check = |network: NamespaceMode, ipc: NamespaceMode, pid: NamespaceMode, expect: &str| {
            let mut case = Case::new();
            (case.namespaces().network, case.sandbox_namespaces().network) = (network as i32, network as i32);
            (case.namespaces().ipc, case.sandbox_namespaces().ipc) = (ipc as i32, ipc as i32);
            case.namespaces().pid = pid as i32;
            case.sandbox_namespaces().pid = if pid == Target { Container } else { pid } as i32;
            assert_eq!(summary(&case).unwrap(), expect);
        };
        check(Pod, Pod, Pod, "+mount =network =uts =ipc =pid +cgroup");
        check(Pod, Pod, Container, "+mount =network =uts =ipc +pid +cgroup");
        check(Pod, Pod, Node, "+mount =network =uts =ipc +cgroup");
        check(Pod, Pod, Target, "+mount =network =uts =ipc =pid +cgroup");
        check(Node, Pod, Container, "+mount =ipc +pid +cgroup");
        check(Pod, Node, Container, "+mount =network =uts +pid +cgroup");
        check(Node, Node, Node, "+mount +cgroup");
    }

    #[test]
    fn a_shared_namespace_without_its_path_is_never_a_new_one() {
        let check = |forget: fn(&mut Case)| {
            let mut case = Case::new();
            (case.namespaces().pid, case.sandbox_namespaces().pid) = (Pod as i32, Pod as i32);
            forget(&mut case);
            assert!(matches!(summary(&case), Err(SpecError::MissingFact { .. })));
        };
        check(|c| c.namespace_paths.network = None);
        check(|c| c.namespace_paths.uts = None);
        check(|c| c.namespace_paths.ipc = None);
        check(|c| c.namespace_paths.pid = None);
        check(|c| {
            c.sandbox_namespaces().userns_options = Some(user_namespace());
            c.namespace_paths.user = None;
        });
    }

    #[test]
    fn user_namespace_first_cgroup_namespace_unless_privileged_or_missing() {
        let mut case = Case::new();
        case.sandbox_namespaces().userns_options = Some(user_namespace());
        assert!(summary(&case).unwrap().starts_with("=user +mount"));
        assert!(!summary(&Case::privileged()).unwrap().contains("cgroup"));
        let mut case = Case::new();
        case.node.cgroup_namespaces = Availability::Missing;
        assert!(!summary(&case).unwrap().contains("cgroup"));
    }
}

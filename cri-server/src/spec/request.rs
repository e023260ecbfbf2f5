//! A request looked at once: what is optional in the wire format has its meaning here.

use std::borrow::Cow;

use proto::cri;

use super::{Inputs, SpecError, oci, user_namespace};
use crate::model::id_range::IdRange;

/// Inputs with the container's security context and the pod's namespace modes at hand.
pub(super) struct Request<'a> {
    pub inputs: &'a Inputs<'a>,
    pub security: Cow<'a, cri::LinuxContainerSecurityContext>,
    pub privilege: Privilege,
    pub modes: Modes,
}

/// Whether a container is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Privilege {
    Confined,
    Privileged,
}

/// Namespace modes. Network, IPC and user namespaces are the pod's and follow the sandbox; only the PID
/// namespace is the container's choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Modes {
    pub network: Shared,
    pub ipc: Shared,
    /// Ids of the pod's own user namespace.
    pub user: Option<IdRange>,
    pub pid: PidMode,
}

/// A namespace of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shared {
    Pod,
    Node,
}

/// The PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PidMode {
    /// Shared in the pod.
    Pod,
    /// New for the container.
    Container,
    /// The node's.
    Node,
    /// Another container's.
    Target,
}

impl<'a> Request<'a> {
    pub fn new(inputs: &'a Inputs<'a>) -> Result<Self, SpecError> {
        let context = inputs.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let security = context.map_or_else(Default::default, Cow::Borrowed);
        let sandbox_linux = inputs.sandbox.linux.as_ref();
        let sandbox = sandbox_linux.and_then(|linux| linux.security_context.as_ref());
        if security.privileged && !sandbox.is_some_and(|sandbox| sandbox.privileged) {
            return Err(SpecError::invalid(
                "linux.security_context.privileged",
                "the sandbox is not privileged",
            ));
        }
        let privilege = if security.privileged { Privilege::Privileged } else { Privilege::Confined };
        let pod = sandbox.and_then(|sandbox| sandbox.namespace_options.as_ref());
        let modes = Modes {
            user: user_namespace::ids(inputs.sandbox)?,
            ..modes(pod, security.namespace_options.as_ref())?
        };
        Ok(Self { inputs, security, privilege, modes })
    }

    /// Ids of the pod's user namespace for the OCI runtime: some want to be told what they join.
    pub fn id_mappings(&self) -> Vec<oci::IdMapping> {
        let mapping = |ids: IdRange| oci::IdMapping { container_id: 0, host_id: ids.first, size: ids.length };
        self.modes.user.map(mapping).into_iter().collect()
    }

    pub fn privileged(&self) -> bool {
        self.privilege == Privilege::Privileged
    }
}

const FIELD: &str = "linux.security_context.namespace_options";

fn modes(pod: Option<&cri::NamespaceOption>, own: Option<&cri::NamespaceOption>) -> Result<Modes, SpecError> {
    let default = cri::NamespaceOption::default();
    let pod = pod.unwrap_or(&default);
    let own = own.unwrap_or(&default);
    shared("network", own.network)?;
    shared("ipc", own.ipc)?;
    let pid = match (mode("pid", own.pid)?, mode("pid", pod.pid)?) {
        (cri::NamespaceMode::Container, _) => PidMode::Container,
        (cri::NamespaceMode::Node, _) => PidMode::Node,
        (cri::NamespaceMode::Target, _) => PidMode::Target,
        // POD is the zero value: "like the sandbox", whatever that has.
        (cri::NamespaceMode::Pod, cri::NamespaceMode::Pod) => PidMode::Pod,
        (cri::NamespaceMode::Pod, cri::NamespaceMode::Container) => PidMode::Container,
        (cri::NamespaceMode::Pod, cri::NamespaceMode::Node) => PidMode::Node,
        (cri::NamespaceMode::Pod, cri::NamespaceMode::Target) => {
            return Err(SpecError::invalid(format!("{FIELD}.pid"), "a sandbox has no target container"));
        }
    };
    Ok(Modes { network: shared("network", pod.network)?, ipc: shared("ipc", pod.ipc)?, user: None, pid })
}

fn mode(name: &str, value: i32) -> Result<cri::NamespaceMode, SpecError> {
    cri::NamespaceMode::try_from(value)
        .map_err(|_| SpecError::invalid(format!("{FIELD}.{name}"), format!("unknown namespace mode {value}")))
}

fn shared(name: &str, value: i32) -> Result<Shared, SpecError> {
    match mode(name, value)? {
        cri::NamespaceMode::Pod => Ok(Shared::Pod),
        cri::NamespaceMode::Node => Ok(Shared::Node),
        other => Err(SpecError::invalid(
            format!("{FIELD}.{name}"),
            format!("mode {} is for PID namespaces only", other.as_str_name()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;
    use super::*;
    use cri::NamespaceMode::{Container, Node, Pod, Target};

    #[test]
    fn the_pid_namespace_is_the_containers_choice_and_pod_means_like_the_sandbox() {
        let check = |sandbox: cri::NamespaceMode, own: cri::NamespaceMode, expect: Option<PidMode>| {
            let mut case = Case::new();
            case.sandbox_namespaces().pid = sandbox as i32;
            case.namespaces().pid = own as i32;
            let inputs = case.inputs();
            assert_eq!(Request::new(&inputs).ok().map(|r| r.modes.pid), expect, "{sandbox:?} {own:?}");
        };
        for sandbox in [Pod, Container, Node] {
            check(sandbox, Container, Some(PidMode::Container));
            check(sandbox, Node, Some(PidMode::Node));
            check(sandbox, Target, Some(PidMode::Target));
        }
        check(Pod, Pod, Some(PidMode::Pod));
        check(Container, Pod, Some(PidMode::Container));
        check(Node, Pod, Some(PidMode::Node));
        check(Target, Pod, None);
    }

    #[test]
    fn modes_that_a_namespace_cannot_have_are_refused() {
        let check = |change: fn(&mut cri::NamespaceOption)| {
            let mut case = Case::new();
            change(case.namespaces());
            change(case.sandbox_namespaces());
            let inputs = case.inputs();
            assert!(matches!(Request::new(&inputs), Err(SpecError::InvalidArgument { .. })));
        };
        check(|n| n.network = Container as i32);
        check(|n| n.network = Target as i32);
        check(|n| n.ipc = Container as i32);
        check(|n| n.ipc = 9);
        check(|n| n.pid = -1);
        check(|n| {
            n.userns_options = Some(cri::UserNamespace { mode: Container as i32, ..Default::default() })
        });
        check(|n| n.userns_options = Some(cri::UserNamespace { mode: Target as i32, ..Default::default() }));
    }

    #[test]
    fn a_privileged_container_needs_a_privileged_sandbox() {
        let mut case = Case::new();
        case.security().privileged = true;
        assert!(Request::new(&case.inputs()).is_err());
        case.sandbox_security().privileged = true;
        let inputs = case.inputs();
        assert!(Request::new(&inputs).is_ok_and(|r| r.privileged()));
    }
}

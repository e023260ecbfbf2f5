//! Sysctls of a sandbox: which may be set, in which of its namespaces. The monitor writes them.

use std::collections::BTreeMap;

use proto::cri;
use proto::cri::NamespaceMode;

use super::SpecError;

const FIELD: &str = "linux.sysctls";
const MAX_VALUE: usize = 4096;

/// What users of other runtimes are used to in a network namespace of the pod: unprivileged ports from 0, and
/// ping without a capability.
const NETWORK_DEFAULTS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Name (with dots) and value of each sysctl to set, the defaults among them.
///
/// Only names that belong to a namespace of the pod are accepted, and only where the pod has that namespace for
/// itself: anything else would change the node.
pub fn effective(sandbox: &cri::PodSandboxConfig) -> Result<BTreeMap<String, String>, SpecError> {
    let linux = sandbox.linux.as_ref();
    let options = linux
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.as_ref());
    let own = |mode: i32| mode == NamespaceMode::Pod as i32;
    let own_network = options.is_none_or(|options| own(options.network));
    let own_ipc = options.is_none_or(|options| own(options.ipc));
    let user_namespace =
        options.is_some_and(|options| options.userns_options.as_ref().is_some_and(|user| own(user.mode)));

    let mut list = BTreeMap::new();
    if own_network {
        // Group ids of a user namespace end before that range does.
        let defaults = NETWORK_DEFAULTS.iter().take(if user_namespace { 1 } else { 2 });
        list.extend(defaults.map(|(name, value)| (name.to_string(), value.to_string())));
    }
    for (name, value) in linux.map(|linux| &linux.sysctls).into_iter().flatten() {
        let canonical = canonical(name)?;
        let owned = match scope(&canonical) {
            Scope::Network => own_network,
            Scope::Ipc => own_ipc,
            Scope::Node => {
                return Err(SpecError::invalid(
                    FIELD,
                    format!("{name:?} does not belong to a pod's namespace"),
                ));
            }
        };
        if !owned {
            return Err(SpecError::invalid(
                FIELD,
                format!("{name:?} would change the node: the pod shares its namespace"),
            ));
        }
        check_value(name, value)?;
        list.insert(canonical, value.clone());
    }
    Ok(list)
}

/// Path below `/proc/sys` of a name that [`effective`] returned.
pub fn path(name: &str) -> String {
    name.chars().map(swapped).collect()
}

fn swapped(c: char) -> char {
    match c {
        '.' => '/',
        '/' => '.',
        c => c,
    }
}

enum Scope {
    Network,
    Ipc,
    Node,
}

fn scope(name: &str) -> Scope {
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name.starts_with("net.") {
        Scope::Network
    } else if name == "kernel.sem" || ipc.iter().any(|prefix| name.starts_with(prefix)) {
        Scope::Ipc
    } else {
        // Host and domain name too, although they have a namespace: they are the sandbox's `hostname`.
        Scope::Node
    }
}

/// The name with dots between its parts. As sysctl(8) has it, the first separator decides which one is meant:
/// after a slash, dots are part of a name (an interface such as `eth0.1`).
fn canonical(name: &str) -> Result<String, SpecError> {
    let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let dotted: String = if slashes { name.chars().map(swapped).collect() } else { name.into() };
    let part = |part: &str| {
        let byte = |b: u8| b.is_ascii_alphanumeric() || b"_-/".contains(&b);
        !part.is_empty() && part.bytes().all(byte) && !part.split('/').any(str::is_empty)
    };
    if name.len() > 255 || !dotted.contains('.') || !dotted.split('.').all(part) {
        return Err(SpecError::invalid(FIELD, format!("{name:?} is not the name of a sysctl")));
    }
    Ok(dotted)
}

fn check_value(name: &str, value: &str) -> Result<(), SpecError> {
    let plain = value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b));
    if value.is_empty() || value.len() > MAX_VALUE || !plain {
        return Err(SpecError::invalid(FIELD, format!("the value of {name:?} is not one line of text")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;
    use super::*;

    fn resolve(
        network: NamespaceMode,
        ipc: NamespaceMode,
        name: &str,
        value: &str,
    ) -> Result<String, SpecError> {
        let mut case = Case::new();
        case.sandbox_namespaces().network = network as i32;
        case.sandbox_namespaces().ipc = ipc as i32;
        case.sandbox.linux.as_mut().unwrap().sysctls.insert(name.into(), value.into());
        let mut list = effective(&case.sandbox)?;
        list.retain(|name, _| !NETWORK_DEFAULTS.iter().any(|(default, _)| default == name));
        Ok(list.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn names_of_the_pods_own_namespaces() {
        use NamespaceMode::{Node, Pod};
        let check = |name: &str, expect: &str| assert_eq!(resolve(Pod, Pod, name, "1").unwrap(), expect);
        check("kernel.shm_rmid_forced", "kernel.shm_rmid_forced=1");
        check("kernel/shmmax", "kernel.shmmax=1");
        check("kernel.msgmax", "kernel.msgmax=1");
        check("kernel.sem", "kernel.sem=1");
        check("fs.mqueue.msg_max", "fs.mqueue.msg_max=1");
        check("net.core.somaxconn", "net.core.somaxconn=1");
        check("net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/1.forwarding=1");
        check("net.ipv4.conf.eth0/1.forwarding", "net.ipv4.conf.eth0/1.forwarding=1");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(resolve(Node, Pod, "kernel.sem", "1").unwrap(), "kernel.sem=1");
        assert_eq!(resolve(Pod, Node, "net.core.somaxconn", "1").unwrap(), "net.core.somaxconn=1");
    }

    #[test]
    fn names_that_would_change_the_node() {
        use NamespaceMode::{Node, Pod};
        let check = |network, ipc, name: &str| assert!(resolve(network, ipc, name, "1").is_err(), "{name}");
        check(Node, Pod, "net.core.somaxconn");
        check(Node, Pod, "net/core/somaxconn");
        check(Pod, Node, "kernel.shmmax");
        check(Pod, Node, "kernel.msgmnb");
        check(Pod, Node, "kernel.sem");
        check(Pod, Node, "fs.mqueue.msg_max");
        for name in [
            "kernel.core_pattern",
            "kernel.hostname",
            "kernel.domainname",
            "kernel.semx",
            "kernel.panic",
            "vm.overcommit_memory",
            "fs.file-max",
            "fs.mqueue",
            "user.max_user_namespaces",
        ] {
            check(Pod, Pod, name);
        }
    }

    #[test]
    fn hostile_names_and_values() {
        use NamespaceMode::Pod;
        let check =
            |name: &str, value: &str| assert!(resolve(Pod, Pod, name, value).is_err(), "{name:?} {value:?}");
        for name in [
            "",
            "net",
            "net.",
            ".net.x",
            "net..x",
            "net./../../kernel/core_pattern",
            "net/../kernel/core_pattern",
            "net/..../kernel/core_pattern",
            "net.a\nb",
            "net.a\0",
            "net.a b",
            "net.ü",
            "net/ipv4//x",
            &format!("net.{}", "a".repeat(300)),
        ] {
            check(name, "1");
        }
        for value in ["", "1\n", "1\0", "x+kernel.core_pattern=|/x\n", "\u{1b}", "ä", &"1".repeat(5000)] {
            check("net.core.somaxconn", value);
        }
        assert!(resolve(Pod, Pod, "net.ipv4.ip_local_port_range", "1024\t65000").is_ok());
    }

    #[test]
    fn defaults_of_an_own_network_namespace() {
        let mut case = Case::new();
        assert_eq!(effective(&case.sandbox).unwrap().len(), 2);
        case.sandbox.linux.as_mut().unwrap().sysctls =
            [("net.ipv4.ip_unprivileged_port_start".to_string(), "80".to_string())].into();
        let list = effective(&case.sandbox).unwrap();
        assert_eq!(list["net.ipv4.ip_unprivileged_port_start"], "80");
        case.sandbox_namespaces().userns_options = Some(Default::default());
        assert!(!effective(&case.sandbox).unwrap().contains_key("net.ipv4.ping_group_range"));
        let mut node = Case::new();
        node.sandbox_namespaces().network = NamespaceMode::Node as i32;
        assert!(effective(&node.sandbox).unwrap().is_empty());
        assert_eq!(effective(&cri::PodSandboxConfig::default()).unwrap().len(), 2);
    }
}

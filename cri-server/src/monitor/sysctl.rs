//! Sysctls of a sandbox: which namespace one belongs to, and where it is in `/proc/sys`.
//!
//! One that belongs to no namespace of the sandbox would change the node, and is refused.

use super::protocol::NamespaceKind;

/// The namespace that `name` belongs to; `None` where the whole node shares it.
pub fn namespace_of(name: &str) -> Option<NamespaceKind> {
    let dotted = name.replace('/', ".");
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    match dotted.as_str() {
        "kernel.domainname" | "kernel.hostname" => Some(NamespaceKind::Uts),
        "kernel.sem" => Some(NamespaceKind::Ipc),
        name if ipc.iter().any(|prefix| name.starts_with(prefix)) => Some(NamespaceKind::Ipc),
        name if name.starts_with("net.") => Some(NamespaceKind::Net),
        _ => None,
    }
}

/// The path below `/proc/sys`; `None` for what is no name. As everywhere, the first separator tells which of `.`
/// and `/` separates; the other one is part of a name, as in `net/ipv4/conf/eth0.1/forwarding`.
pub fn path_of(name: &str) -> Option<String> {
    let path: String = match name.chars().find(|c| matches!(c, '.' | '/')) {
        Some('/') => name.to_owned(),
        _ => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    let sound = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(|c| c.is_ascii_graphic());
    path.split('/').all(sound).then(|| format!("/proc/sys/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        let check = |name: &str, expect: Option<&str>| assert_eq!(path_of(name).as_deref(), expect, "{name}");
        check("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward"));
        check("net/ipv4/conf/eth0.1/forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding"));
        check("net.ipv4.conf.eth0/1.forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding"));
        for name in ["", ".", "net..x", "net/../kernel/panic", "/net/x", "net.a b", "net.\n"] {
            check(name, None);
        }
    }

    #[test]
    fn a_sysctl_of_the_node_has_no_namespace() {
        let check = |name: &str, expect| assert_eq!(namespace_of(name), expect, "{name}");
        check("net.core.somaxconn", Some(NamespaceKind::Net));
        check("net/core/somaxconn", Some(NamespaceKind::Net));
        check("kernel.shm_rmid_forced", Some(NamespaceKind::Ipc));
        check("kernel.sem", Some(NamespaceKind::Ipc));
        check("fs.mqueue.msg_max", Some(NamespaceKind::Ipc));
        check("kernel.domainname", Some(NamespaceKind::Uts));
        check("kernel.panic", None);
        check("vm.swappiness", None);
        check("kernel.semaphore", None);
    }
}

//! The file systems that a container has before anything is mounted into it.

use std::path::PathBuf;

use super::super::oci::Mount;
use super::super::request::{PidMode, Request, Shared};
use super::super::{CgroupMount, CgroupVersion};

pub(super) fn file_systems(request: &Request<'_>) -> Vec<Mount> {
    let access = if request.privileged() { "rw" } else { "ro" };
    let mut list = vec![
        file_system("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        file_system("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        file_system("/dev/pts", "devpts", "devpts", &terminals(request)),
        file_system("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sys(request, access),
    ];
    if can_mount_cgroups(request) {
        let options = ["nosuid", "noexec", "nodev", "relatime", access];
        list.push(file_system("/sys/fs/cgroup", "cgroup", "cgroup", &options));
    }
    list
}

/// A container without its cgroups is better than none: who wants to know its limits finds none.
fn can_mount_cgroups(request: &Request<'_>) -> bool {
    let joins = matches!(request.modes.pid, PidMode::Pod | PidMode::Target);
    let v1 = request.inputs.node.cgroups != CgroupVersion::V2;
    !(joins && v1 && request.inputs.handler.cgroup_mount == CgroupMount::NotInJoinedPids)
}

fn terminals(request: &Request<'_>) -> Vec<&'static str> {
    let mut options = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    // The group of terminals; a user namespace need not have it.
    if request.modes.user.is_none() {
        options.push("gid=5");
    }
    options
}

/// A sysfs shows the network namespace of who mounts it. A user namespace that does not own the node's network
/// namespace cannot mount one: there the node's is bound.
fn sys(request: &Request<'_>, access: &str) -> Mount {
    if request.modes.user.is_some() && request.modes.network == Shared::Node {
        return file_system(
            "/sys",
            "bind",
            "/sys",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev", access],
        );
    }
    file_system("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access])
}

fn file_system(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: PathBuf::from(destination),
        kind: kind.into(),
        source: PathBuf::from(source),
        options: options.iter().map(|option| option.to_string()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture::{Case, user_namespace};
    use proto::cri::NamespaceMode;
    use std::path::Path;

    fn options(case: &Case, destination: &str) -> String {
        let spec = case.generate().unwrap();
        let mount = spec.mounts.iter().find(|m| m.destination == Path::new(destination)).unwrap();
        format!("{} {}", mount.kind, mount.options.join(","))
    }

    #[test]
    fn sys_is_writable_only_when_privileged() {
        let check = |case: &Case, path: &str, expect: &str| assert_eq!(options(case, path), expect);
        let cgroup = "cgroup nosuid,noexec,nodev,relatime";
        check(&Case::new(), "/sys", "sysfs nosuid,noexec,nodev,ro");
        check(&Case::new(), "/sys/fs/cgroup", &format!("{cgroup},ro"));
        check(&Case::privileged(), "/sys", "sysfs nosuid,noexec,nodev,rw");
        check(&Case::privileged(), "/sys/fs/cgroup", &format!("{cgroup},rw"));
    }

    #[test]
    fn a_user_namespace_without_its_own_network_binds_sys() {
        let mut case = Case::new();
        case.sandbox_namespaces().network = NamespaceMode::Node as i32;
        assert_eq!(options(&case, "/sys"), "sysfs nosuid,noexec,nodev,ro");
        case.sandbox_namespaces().userns_options = Some(user_namespace());
        assert_eq!(options(&case, "/sys"), "bind rbind,rprivate,nosuid,noexec,nodev,ro");
        assert!(!options(&case, "/dev/pts").contains("gid="));
    }

    #[test]
    fn cgroups_are_mounted_where_the_runtime_can() {
        use super::{CgroupMount::*, CgroupVersion};
        let check = |mount, cgroups, pid: NamespaceMode, expect: bool| {
            let mut case = Case::new();
            (case.handler.cgroup_mount, case.node.cgroups) = (mount, cgroups);
            (case.namespaces().pid, case.sandbox_namespaces().pid) = (pid as i32, pid as i32);
            let mounts = case.generate().unwrap().mounts;
            let has = mounts.iter().any(|mount| mount.destination == Path::new("/sys/fs/cgroup"));
            assert_eq!(has, expect, "{mount:?} {cgroups:?} {pid:?}");
        };
        check(Always, CgroupVersion::V1, NamespaceMode::Pod, true);
        check(NotInJoinedPids, CgroupVersion::V1, NamespaceMode::Pod, false);
        check(NotInJoinedPids, CgroupVersion::Hybrid, NamespaceMode::Pod, false);
        check(NotInJoinedPids, CgroupVersion::V1, NamespaceMode::Container, true);
        check(NotInJoinedPids, CgroupVersion::V2, NamespaceMode::Pod, true);
    }
}

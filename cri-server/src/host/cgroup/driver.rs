//! Who makes the cgroups of containers, and what these are called then. Pure.

use serde::Deserialize;

use super::path::{CgroupPath, InvalidPath};
use super::slice::Slice;

/// The cgroup driver; must be the kubelet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The OCI runtime makes directories.
    Cgroupfs,
    /// systemd makes scopes, asked by the OCI runtime.
    Systemd,
}

impl Driver {
    /// As the configuration and the kubelet spell it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }

    /// Parent of pods whose request names none, where the configuration does not either.
    pub fn default_parent(self) -> &'static str {
        match self {
            Self::Cgroupfs => "/berth",
            Self::Systemd => "berth.slice",
        }
    }

    /// The parent of a pod's containers, as its record has it: the one of its request, checked.
    pub fn given_parent(self, wanted: &str) -> Result<String, InvalidPath> {
        match self {
            Self::Cgroupfs => Ok(CgroupPath::parent(wanted)?.as_str().into()),
            Self::Systemd => Ok(Slice::parse(wanted)?.name().into()),
        }
    }

    /// The same for a pod whose request names none: its own one in `common`.
    pub fn own_parent(self, common: &str, pod: &str) -> Result<String, InvalidPath> {
        match self {
            Self::Cgroupfs => Ok(CgroupPath::parent(common)?.child(pod)?.as_str().into()),
            Self::Systemd => Ok(Slice::parse(common)?.child(pod)?.name().into()),
        }
    }
}

/// What OCI runtimes call `cgroupsPath`, for a container in this parent of a record.
pub fn container_in(parent: &str, container: &str) -> Result<String, InvalidPath> {
    match parent.starts_with('/') {
        true => Ok(CgroupPath::parse(parent)?.child(container)?.as_str().into()),
        false => Ok(Slice::parse(parent)?.scope_of(container)),
    }
}

/// Whether the parent of a record was made by [`Driver::own_parent`] for this pod, whatever the driver was then.
pub fn is_own_parent(parent: &str, pod: &str) -> bool {
    parent.trim_end_matches(".slice").ends_with(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_in_the_form_of_the_driver() {
        let check = |driver: Driver, wanted: &str, expect: Option<&str>| {
            assert_eq!(driver.given_parent(wanted).ok().as_deref(), expect, "{driver:?} {wanted}");
        };
        check(Driver::Cgroupfs, "/kubepods/pod1", Some("/kubepods/pod1"));
        check(Driver::Cgroupfs, "kubepods-pod1.slice", None);
        check(Driver::Cgroupfs, "/kubepods.slice/", None);
        check(Driver::Systemd, "kubepods-pod1.slice", Some("kubepods-pod1.slice"));
        check(Driver::Systemd, "/kubepods.slice/kubepods-pod1.slice", Some("kubepods-pod1.slice"));
        check(Driver::Systemd, "/kubepods/pod1", None);
    }

    #[test]
    fn containers_are_in_the_form_of_their_parent() {
        for (driver, parent, container) in [
            (Driver::Cgroupfs, "/berth/p", "/berth/p/c"),
            (Driver::Systemd, "berth-p.slice", "berth-p.slice:cri-berth:c"),
        ] {
            assert_eq!(driver.own_parent(driver.default_parent(), "p").unwrap(), parent);
            assert_eq!(container_in(parent, "c").unwrap(), container);
            assert!(is_own_parent(parent, "p") && !is_own_parent(parent, "q"));
        }
        assert_eq!(container_in("/", "c").unwrap(), "/c");
        assert_eq!(container_in("-.slice", "c").unwrap(), "-.slice:cri-berth:c");
    }
}

//! Paths of cgroups as CRI and OCI runtimes name them, checked. Pure.

use std::fmt;
use std::path::{Path, PathBuf};

use super::slice::Unit;

/// An absolute path below the root of every hierarchy: no `.`, no `..`, no empty step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(String);

/// Why a text is no path of a cgroup.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidPath {
    /// It is a systemd slice and the driver is cgroupfs.
    #[error(
        "cgroup parent {0:?} is a systemd slice, but the cgroup driver is cgroupfs: both sides must use one driver"
    )]
    Slice(String),
    /// It is none, and the driver is systemd.
    #[error(
        "expected the name of a systemd slice, got {0:?}: the cgroup driver is systemd, and both sides must use one driver"
    )]
    NoSlice(String),
    /// It is no name that systemd takes for a slice.
    #[error("slice {name:?}: {reason}")]
    SliceName {
        /// The name, or the path that ends in it.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It has a step that a path of a cgroup cannot have.
    #[error("cgroup path {path:?} has the step {step:?}")]
    Step {
        /// The whole path.
        path: String,
        /// The offending step.
        step: String,
    },
    /// It is longer than a path may be.
    #[error("a cgroup path of {0} bytes is too long")]
    Long(usize),
}

impl CgroupPath {
    /// The CRI's `cgroup_parent` with the driver cgroupfs; a relative one is meant from the root.
    pub fn parent(text: &str) -> Result<Self, InvalidPath> {
        if text.trim_end_matches('/').ends_with(".slice") {
            return Err(InvalidPath::Slice(text.into()));
        }
        Self::parse(text)
    }

    /// What a record names: a path, or a slice or scope of systemd.
    pub fn recorded(text: &str) -> Result<Self, InvalidPath> {
        match Unit::parse(text)? {
            Some(unit) => Ok(unit.path),
            None => Self::parse(text),
        }
    }

    /// Any path.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        if text.len() > 2048 {
            return Err(InvalidPath::Long(text.len()));
        }
        let mut path = String::with_capacity(text.len() + 1);
        for step in text.split('/').filter(|step| !step.is_empty()) {
            if step == "." || step == ".." || step.len() > 255 || step.contains(char::is_control) {
                return Err(InvalidPath::Step { path: text.into(), step: step.into() });
            }
            path.push('/');
            path.push_str(step);
        }
        if path.is_empty() {
            path.push('/');
        }
        Ok(Self(path))
    }

    /// The cgroup `name` in this one; the result is what OCI calls `cgroupsPath`.
    pub fn child(&self, name: &str) -> Result<Self, InvalidPath> {
        if name.is_empty() || name.contains('/') {
            return Err(InvalidPath::Step { path: self.0.clone(), step: name.into() });
        }
        Self::parse(&format!("{}/{name}", self.0))
    }

    /// The path as text; starts with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn is_root(&self) -> bool {
        self.0 == "/"
    }

    pub(super) fn below(&self, mount: &Path) -> PathBuf {
        mount.join(&self.0[1..])
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents() {
        fn check(text: &str, expect: Result<&str, &str>) {
            let path =
                CgroupPath::parent(text).map(|path| path.to_string()).map_err(|error| error.to_string());
            assert_eq!(path.as_deref().map_err(String::as_str), expect);
        }
        check("/", Ok("/"));
        check("/kubepods//burstable/pod1/", Ok("/kubepods/burstable/pod1"));
        check("mine", Ok("/mine"));
        check("/a/../b", Err(r#"cgroup path "/a/../b" has the step "..""#));
        check("/a/./b", Err(r#"cgroup path "/a/./b" has the step ".""#));
        check("/a\nb", Err(r#"cgroup path "/a\nb" has the step "a\nb""#));
        check(
            "kubepods-besteffort-pod1.slice",
            Err(concat!(
                r#"cgroup parent "kubepods-besteffort-pod1.slice" is a systemd slice, "#,
                "but the cgroup driver is cgroupfs: both sides must use one driver"
            )),
        );
        let long = "a/".repeat(1025);
        check(&long, Err("a cgroup path of 2050 bytes is too long"));
    }

    #[test]
    fn records_name_paths_or_units() {
        let check = |text: &str, path: &str| assert_eq!(CgroupPath::recorded(text).unwrap().as_str(), path);
        check("/berth/a:b:c", "/berth/a:b:c");
        check("a-b.slice", "/a.slice/a-b.slice");
        check("a-b.slice:cri-berth:c", "/a.slice/a-b.slice/cri-berth-c.scope");
        assert!(CgroupPath::recorded("a").is_err());
    }

    #[test]
    fn children_are_one_step_deeper() {
        let parent = CgroupPath::parent("/berth").unwrap();
        assert_eq!(parent.child("abc").unwrap().as_str(), "/berth/abc");
        assert_eq!(CgroupPath::parent("/").unwrap().child("abc").unwrap().as_str(), "/abc");
        for name in ["", "a/b", ".."] {
            assert!(parent.child(name).is_err(), "{name}");
        }
    }
}

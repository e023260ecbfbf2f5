//! systemd's names of cgroups, and the paths that they stand for: `a-b.slice` is `/a.slice/a-b.slice`. Pure.
//!
//! With the systemd driver a record has names in place of paths, as OCI runtimes take them: a pod's parent is a slice,
//! a container is `slice:prefix:id`, for which the OCI runtime has systemd make the scope `prefix-id.scope`.

use super::path::{CgroupPath, InvalidPath};

/// First part of the names of containers' scopes.
const SCOPE_PREFIX: &str = "cri-berth";
const SLICE: &str = ".slice";
/// The slice of everything.
const ROOT: &str = "-.slice";
/// Files of a cgroup begin with these; systemd gives a unit with such a name a cgroup with another one.
const RESERVED: [&str; 10] =
    ["cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids", "hugetlb"];

/// A slice, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    name: String,
    path: CgroupPath,
}

impl Slice {
    /// A name such as `kubepods-burstable.slice`, or its whole path.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        let name = text.rsplit('/').next().unwrap_or_default();
        let refuse = |reason| InvalidPath::SliceName { name: text.into(), reason };
        let stem = name.strip_suffix(SLICE).ok_or_else(|| InvalidPath::NoSlice(text.into()))?;
        check_stem(stem).map_err(refuse)?;
        let path = CgroupPath::parse(&expand(stem))?;
        if text.contains('/') && text != path.as_str() {
            return Err(refuse("its path does not follow from its name"));
        }
        Ok(Self { name: name.into(), path })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The slice `name` in this one.
    pub fn child(&self, name: &str) -> Result<Self, InvalidPath> {
        match self.name.as_str() {
            ROOT => Self::parse(&format!("{name}{SLICE}")),
            own => Self::parse(&format!("{}-{name}{SLICE}", own.trim_end_matches(SLICE))),
        }
    }

    /// What OCI runtimes call `cgroupsPath`, for a container in this slice.
    pub fn scope_of(&self, container: &str) -> String {
        format!("{}:{SCOPE_PREFIX}:{container}", self.name)
    }
}

/// A name that systemd manages, as records have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name, with its kind.
    pub name: String,
    /// Its cgroup.
    pub path: CgroupPath,
}

impl Unit {
    /// The slice or scope that a record's text names; `None` where that is a path.
    pub fn parse(text: &str) -> Result<Option<Self>, InvalidPath> {
        if text.starts_with('/') || text.is_empty() {
            return Ok(None);
        }
        let mut parts = text.splitn(3, ':');
        let slice = Slice::parse(parts.next().unwrap_or_default())?;
        let (Some(prefix), Some(id)) = (parts.next(), parts.next()) else {
            return Ok(Some(Self { name: slice.name, path: slice.path }));
        };
        let name = format!("{prefix}-{id}.scope");
        let path = slice.path.child(&name)?;
        Ok(Some(Self { name, path }))
    }
}

fn check_stem(stem: &str) -> Result<(), &'static str> {
    if stem == "-" {
        return Ok(());
    }
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.\\@".contains(c);
    if stem.is_empty() || stem.split('-').any(str::is_empty) {
        return Err("a part of it is empty");
    }
    if stem.len() + SLICE.len() > 255 {
        return Err("it is longer than 255 bytes");
    }
    if !stem.chars().all(known) {
        return Err("expected letters, digits and any of -_.\\@");
    }
    if stem.starts_with(['_', '.']) || RESERVED.contains(&stem.split(['-', '.']).next().unwrap_or_default()) {
        return Err("systemd gives its cgroup another name");
    }
    Ok(())
}

/// One step for each dash.
fn expand(stem: &str) -> String {
    if stem == "-" {
        return "/".into();
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    ends.map(|end| format!("/{}{SLICE}", &stem[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_stands_for_a_path() {
        let check = |text: &str, name: &str, path: &str| {
            let slice = Slice::parse(text).unwrap();
            assert_eq!((slice.name(), slice.path.as_str()), (name, path), "{text}");
        };
        check("a.slice", "a.slice", "/a.slice");
        check("-.slice", "-.slice", "/");
        check("system.slice", "system.slice", "/system.slice");
        let pod = "kubepods-burstable-pod1_2.slice";
        let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        check(pod, pod, path);
        check(path, pod, path);
    }

    #[test]
    fn bad_names_are_refused_with_the_reason() {
        let check = |text: &str, words: &str| {
            let error = Slice::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        };
        for text in ["", "/", "a", "/kubepods/pod1", "a.scope", "a.slice/", "a.slice/b"] {
            check(text, "expected the name of a systemd slice");
        }
        for text in [".slice", "-a.slice", "a-.slice", "a--b.slice", "--.slice"] {
            check(text, "a part of it is empty");
        }
        for text in ["a:b.slice", "a b.slice", "a\n.slice", "ä.slice", "a%.slice", "$(x).slice"] {
            check(text, "expected letters");
        }
        for text in ["_a.slice", ".a.slice", "cpu.slice", "memory.x.slice", "cgroup-a.slice"] {
            check(text, "another name");
        }
        for text in ["/b.slice", "x/a-b.slice", "/a.slice/b.slice", "/a.slice/../a.slice/a-b.slice"] {
            let found = Slice::parse(text);
            assert!(text == "/b.slice" || found.is_err(), "{text}: {found:?}");
        }
        check("/a-b.slice", "does not follow");
        check("a.slice/a-b.slice", "does not follow");
        check(&format!("{}.slice", "a".repeat(250)), "255");
        check(&format!("{}a.slice", "a-".repeat(120)), "too long");
    }

    #[test]
    fn children_and_scopes_have_names_of_their_own() {
        let slice = Slice::parse("berth.slice").unwrap();
        assert_eq!(slice.child("p1").unwrap().path.as_str(), "/berth.slice/berth-p1.slice");
        assert_eq!(Slice::parse("-.slice").unwrap().child("p1").unwrap().name(), "p1.slice");
        let scope = slice.child("p1").unwrap().scope_of("c1");
        assert_eq!(scope, "berth-p1.slice:cri-berth:c1");
        let unit = Unit::parse(&scope).unwrap().unwrap();
        assert_eq!(unit.name, "cri-berth-c1.scope");
        assert_eq!(unit.path.as_str(), "/berth.slice/berth-p1.slice/cri-berth-c1.scope");
        assert_eq!(Unit::parse("berth.slice").unwrap().unwrap().name, "berth.slice");
        assert_eq!(Unit::parse("/berth/a:b:c"), Ok(None));
        assert!(Unit::parse("berth:a:b").is_err());
        assert!(Unit::parse("berth.slice:a:b/c").is_err());
    }
}

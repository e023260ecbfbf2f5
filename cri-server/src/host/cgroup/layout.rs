//! Which hierarchies the node has, and where they are mounted. Parsing is pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// The cgroup hierarchies of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// cgroup v2: one hierarchy.
    V2 {
        /// Its mount point.
        mount: PathBuf,
    },
    /// cgroup v1, where the unified hierarchy may be mounted too (hybrid).
    V1 {
        /// Mount point of each controller (`cpu`) and named hierarchy (`name=systemd`).
        controllers: BTreeMap<String, PathBuf>,
        /// Mount point of the unified hierarchy.
        unified: Option<PathBuf>,
    },
}

const CONTROLLERS: [&str; 14] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

impl Layout {
    /// The layout of the mount namespace that the caller is in.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = PathBuf::from("/proc/self/mountinfo");
        let text = std::fs::read_to_string(&path);
        Self::parse(&text.map_err(|source| CgroupError::Io { action: "reading", path, source })?)
    }

    /// The layout that a mountinfo file (proc_pid_mountinfo(5)) describes.
    pub fn parse(mountinfo: &str) -> Result<Self, CgroupError> {
        let mut controllers: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut unified: Option<PathBuf> = None;
        for mount in mountinfo.lines().filter_map(Mount::parse).filter(|mount| mount.root == "/") {
            match mount.kind {
                "cgroup2" => drop(unified.get_or_insert(mount.point)),
                "cgroup" => {
                    for option in mount.options.split(',') {
                        if CONTROLLERS.contains(&option) || option.starts_with("name=") {
                            controllers.entry(option.into()).or_insert_with(|| mount.point.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        let has_controllers = controllers.keys().any(|name| !name.starts_with("name="));
        match unified {
            Some(mount) if mount == Path::new("/sys/fs/cgroup") || !has_controllers => Ok(Self::V2 { mount }),
            unified if has_controllers => Ok(Self::V1 { controllers, unified }),
            _ => Err(CgroupError::NoHierarchy),
        }
    }

    /// Where the files of a v1 controller, or of anything on v2, are.
    pub(super) fn mount(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V2 { mount } => Some(mount),
            Self::V1 { controllers, .. } => controllers.get(controller).map(PathBuf::as_path),
        }
    }

    /// All mount points, each once: co-mounted controllers share one.
    pub(super) fn mounts(&self) -> Vec<&Path> {
        let mut mounts: Vec<&Path> = match self {
            Self::V2 { mount } => vec![mount],
            Self::V1 { controllers, unified } => {
                controllers.values().chain(unified).map(PathBuf::as_path).collect()
            }
        };
        mounts.sort_unstable();
        mounts.dedup();
        mounts
    }
}

/// What matters of one line of mountinfo.
struct Mount<'a> {
    root: &'a str,
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let kind = file_system.next()?;
        Some(Self { root, point: unescape(point).into(), kind, options: file_system.nth(1).unwrap_or("") })
    }
}

/// Undoes the octal escapes of white space and backslash.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 /docker/x /other\\040place rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
";
    const UNIFIED: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";

    fn v1(unified: Option<&str>) -> Layout {
        let controllers = [
            ("cpu", "cpu,cpuacct"),
            ("cpuacct", "cpu,cpuacct"),
            ("memory", "memory"),
            ("name=systemd", "systemd"),
        ];
        let at = |(name, dir): (&str, &str)| (name.to_string(), Path::new("/sys/fs/cgroup").join(dir));
        Layout::V1 { controllers: controllers.map(at).into(), unified: unified.map(PathBuf::from) }
    }

    #[test]
    fn layouts() {
        fn check(text: &str, expect: Option<Layout>) {
            assert_eq!(Layout::parse(text).ok(), expect, "{text}");
        }
        let v2 = Layout::V2 { mount: "/sys/fs/cgroup".into() };
        let whole = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        check("", None);
        check("31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\nrubbish\n", None);
        check(V1, Some(v1(None)));
        check(&[V1, UNIFIED].concat(), Some(v1(Some("/sys/fs/cgroup/unified"))));
        check(whole, Some(v2.clone()));
        check(&[whole, "9 8 0:1 / /cg/net rw - cgroup cgroup rw,net_cls"].concat(), Some(v2));
        let named = "40 31 0:37 / /cg/systemd rw - cgroup cgroup rw,name=systemd\n";
        check(named, None);
        let spaced = "41 31 0:38 / /a\\040b rw - cgroup2 cgroup2 rw\n";
        check(&[named, spaced].concat(), Some(Layout::V2 { mount: "/a b".into() }));
    }

    #[test]
    fn co_mounted_controllers_are_one_mount() {
        let layout = v1(Some("/sys/fs/cgroup/unified"));
        let names: Vec<_> =
            layout.mounts().into_iter().map(|m| m.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["cpu,cpuacct", "memory", "systemd", "unified"]);
        assert_eq!(layout.mount("cpuacct"), layout.mount("cpu"));
        assert_eq!(layout.mount("pids"), None);
    }
}

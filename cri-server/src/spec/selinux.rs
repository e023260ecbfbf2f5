//! SELinux labels: of a pod, of its containers, and which of the node's files may get one.
//!
//! A pod's processes and files share one pair of categories (a *level*) that no other pod has; what keeps containers
//! of other pods out is that theirs is another. The pod's labels are in its record, so that a level is taken while
//! that record is there. Follows the policy's `lxc_contexts`, as other engines do.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use proto::cri;
use serde::{Deserialize, Serialize};

use super::SpecError;

/// Categories of a policy for containers.
const CATEGORIES: u32 = 1024;

/// Directories of the node that are shared with everything on it: giving them a container's label would lock the
/// node out, or let the container into all of it.
const NEVER: [&str; 23] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
];
/// Directories below which nothing is relabelled either: the kernel's file systems.
const NEVER_BELOW: [&str; 3] = ["/proc", "/sys", "/dev"];

/// A security context.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Context {
    user: String,
    role: String,
    kind: String,
    level: String,
}

/// What the node's policy gives containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    process: Context,
    file: Context,
    read_only: Context,
}

/// The labels of a pod or a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Of its processes.
    pub process: String,
    /// Of its files.
    pub mount: String,
}

impl Contexts {
    /// Reads the policy's `lxc_contexts`. `None` when it does not say what containers get.
    pub fn parse(text: &str) -> Option<Self> {
        let value = |wanted: &str| {
            let line = text.lines().filter_map(|line| line.trim().split_once('='));
            let (_, value) = line.rev().find(|(key, _)| key.trim() == wanted)?;
            Context::parse(value.trim().trim_matches('"'))
        };
        let file = value("file")?;
        let read_only = value("ro_file").unwrap_or_else(|| file.clone());
        Some(Self { process: value("process")?, file, read_only })
    }

    /// All labels, without a level of a pod's own.
    pub fn labels(&self) -> [String; 3] {
        [&self.process, &self.file, &self.read_only].map(Context::to_string)
    }

    /// Of files that all containers read and none writes: layers of images. Behind the label of a container's root, the
    /// kernel still judges by it what is mapped from a layer.
    pub fn read_only(&self) -> String {
        self.read_only.to_string()
    }

    /// Labels of a new pod, of a level that is not among `taken` where the request names none. `random` is any
    /// number. `None` when all levels are taken.
    pub fn pod(
        &self,
        asked: Option<&cri::SeLinuxOption>,
        taken: &BTreeSet<String>,
        random: u32,
    ) -> Option<Labels> {
        let named = asked.is_some_and(|asked| !asked.level.is_empty());
        let level = if named { String::new() } else { free_level(taken, random)? };
        let pod = Labels {
            process: Context { level: level.clone(), ..self.process.clone() }.to_string(),
            mount: Context { level, ..self.file.clone() }.to_string(),
        };
        Some(pod.with(asked))
    }
}

impl Labels {
    /// With what a request says: all of it for processes; files have its user and level.
    #[must_use]
    pub fn with(&self, asked: Option<&cri::SeLinuxOption>) -> Self {
        let (Some(mut process), Some(mut mount), Some(asked)) =
            (Context::parse(&self.process), Context::parse(&self.mount), asked)
        else {
            return self.clone();
        };
        let set = |part: &mut String, asked: &String| {
            if !asked.is_empty() {
                part.clone_from(asked);
            }
        };
        set(&mut process.user, &asked.user);
        set(&mut process.role, &asked.role);
        set(&mut process.kind, &asked.r#type);
        set(&mut process.level, &asked.level);
        set(&mut mount.user, &asked.user);
        set(&mut mount.level, &asked.level);
        Self { process: process.to_string(), mount: mount.to_string() }
    }

    /// The level that keeps others out.
    pub fn level(&self) -> Option<String> {
        Context::parse(&self.process).map(|context| context.level)
    }
}

impl Context {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_string);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        let level = parts.next().unwrap_or_default();
        let whole = [&user, &role, &kind].iter().all(|part| !part.is_empty());
        whole.then_some(Self { user, role, kind, level })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, role, kind, level } = self;
        write!(f, "{user}:{role}:{kind}")?;
        if level.is_empty() { Ok(()) } else { write!(f, ":{level}") }
    }
}

/// The first free pair of categories, searched from a random one on.
fn free_level(taken: &BTreeSet<String>, random: u32) -> Option<String> {
    let pairs = CATEGORIES * (CATEGORIES - 1) / 2;
    let level = |index: u32| {
        let (low, high) = pair(index);
        format!("s0:c{low},c{high}")
    };
    (0..pairs).map(|step| level((random % pairs + step) % pairs)).find(|level| !taken.contains(level))
}

/// The pair of categories with this number, the lower one first.
fn pair(index: u32) -> (u32, u32) {
    // Pairs are counted by their higher category: 0 with 1, then 0 and 1 with 2, and so on.
    let mut high = 1;
    let mut first = 0;
    while first + high <= index {
        first += high;
        high += 1;
    }
    (index - first, high)
}

/// Refuses what cannot be part of a label; whether the policy knows it is the kernel's to say.
pub fn check(field: &str, asked: &cri::SeLinuxOption) -> Result<(), SpecError> {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    let parts = [
        ("user", &asked.user, plain(&asked.user)),
        ("role", &asked.role, plain(&asked.role)),
        ("type", &asked.r#type, plain(&asked.r#type)),
        ("level", &asked.level, asked.level.is_empty() || is_level(&asked.level)),
    ];
    match parts.into_iter().find(|(.., valid)| !valid) {
        None => Ok(()),
        Some((name, value, _)) => {
            Err(SpecError::invalid(format!("{field}.{name}"), format!("{value:?} is not part of a label")))
        }
    }
}

/// `s0`, `s0-s15`, and after a colon categories: `c0.c3,c7`.
fn is_level(text: &str) -> bool {
    let number = |text: &str, digits: usize| {
        (1..=digits).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let sensitivity = |text: &str| text.strip_prefix('s').is_some_and(|rest| number(rest, 2));
    let category = |text: &str| text.strip_prefix('c').is_some_and(|rest| number(rest, 4));
    let (sensitivities, categories) = match text.split_once(':') {
        Some((sensitivities, categories)) => (sensitivities, Some(categories)),
        None => (text, None),
    };
    let sensitivities = sensitivities.splitn(2, '-').all(sensitivity);
    sensitivities
        && categories.is_none_or(|list| list.split(',').all(|range| range.splitn(2, '.').all(category)))
}

/// Whether a volume at this path, links followed, may be given a container's label.
pub fn may_relabel(path: &Path) -> bool {
    !NEVER.iter().any(|never| path == Path::new(never))
        && !NEVER_BELOW.iter().any(|never| path.starts_with(never))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"system_u:object_r:virt_var_lib_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\nro_file=\"system_u:object_r:container_ro_file_t:s0\"\n";

    fn asked(user: &str, role: &str, kind: &str, level: &str) -> cri::SeLinuxOption {
        let [user, role, r#type, level] = [user, role, kind, level].map(String::from);
        cri::SeLinuxOption { user, role, r#type, level }
    }

    #[test]
    fn a_pod_has_the_policys_labels_with_a_level_of_its_own() {
        let contexts = Contexts::parse(POLICY).unwrap();
        let pod = contexts.pod(None, &BTreeSet::new(), 0).unwrap();
        assert_eq!(pod.process, "system_u:system_r:container_t:s0:c0,c1");
        assert_eq!(pod.mount, "system_u:object_r:container_file_t:s0:c0,c1");
        assert_eq!(contexts.read_only(), "system_u:object_r:container_ro_file_t:s0");
        let older = Contexts::parse(&POLICY.replace("ro_file", "other")).unwrap();
        assert_eq!(older.read_only(), "system_u:object_r:container_file_t:s0");
        let taken = BTreeSet::from([pod.level().unwrap()]);
        assert_eq!(contexts.pod(None, &taken, 0).unwrap().level().unwrap(), "s0:c0,c2");
        let named = contexts.pod(Some(&asked("", "", "", "s0:c7")), &taken, 0).unwrap();
        assert_eq!(named.mount, "system_u:object_r:container_file_t:s0:c7");
        for text in ["", "process = \"a:b\"\nfile = \"a:b:c\"", "process = \"a:b:c\"\n"] {
            assert_eq!(Contexts::parse(text), None, "{text}");
        }
    }

    #[test]
    fn levels_are_all_pairs_and_then_there_is_none() {
        let pairs = CATEGORIES * (CATEGORIES - 1) / 2;
        assert_eq!((pair(0), pair(1), pair(2), pair(3)), ((0, 1), (0, 2), (1, 2), (0, 3)));
        assert_eq!(pair(pairs - 1), (CATEGORIES - 2, CATEGORIES - 1));
        let mut taken = BTreeSet::from([free_level(&BTreeSet::new(), pairs - 1).unwrap()]);
        assert_eq!(free_level(&taken, pairs - 1).unwrap(), "s0:c0,c1");
        taken.extend((0..300).map(|index| format!("s0:c{},c{}", pair(index).0, pair(index).1)));
        assert_eq!(free_level(&taken, 0).unwrap(), format!("s0:c{},c{}", pair(300).0, pair(300).1));
    }

    #[test]
    fn a_container_has_the_pods_labels_with_what_it_asks_for() {
        let pod = Labels { process: "u:r:t:s0:c1,c2".into(), mount: "u:object_r:f:s0:c1,c2".into() };
        let check = |asked: Option<cri::SeLinuxOption>, process: &str, mount: &str| {
            let labels = pod.with(asked.as_ref());
            assert_eq!((labels.process.as_str(), labels.mount.as_str()), (process, mount));
        };
        check(None, "u:r:t:s0:c1,c2", "u:object_r:f:s0:c1,c2");
        check(Some(asked("", "", "", "")), "u:r:t:s0:c1,c2", "u:object_r:f:s0:c1,c2");
        check(Some(asked("", "", "spc_t", "")), "u:r:spc_t:s0:c1,c2", "u:object_r:f:s0:c1,c2");
        check(Some(asked("v", "w", "", "s0:c9")), "v:w:t:s0:c9", "v:object_r:f:s0:c9");
    }

    #[test]
    fn parts_of_labels_are_checked() {
        let level = |level: &str| check("f", &asked("", "", "", level)).is_ok();
        for good in ["", "s0", "s0-s0", "s0-s15:c0.c1023", "s0:c1,c2", "s0:c1.c3,c7"] {
            assert!(level(good), "{good}");
        }
        for bad in [
            "s",
            "0",
            "s0:",
            "s0:c",
            "s0:1",
            "s0:c12345",
            "s0,c1",
            "s0:c1,",
            "s0:c1.c2.c3",
            "s0\nx",
            "s0-s1-s2",
        ] {
            assert!(!level(bad), "{bad}");
        }
        let error = check("f", &asked("", "", "a:b", "")).unwrap_err().to_string();
        assert_eq!(error, "invalid f.type: \"a:b\" is not part of a label");
    }

    #[test]
    fn the_nodes_own_directories_keep_their_labels() {
        for path in ["/", "/etc", "/usr", "/home", "/var/lib", "/proc/1", "/sys/fs/cgroup", "/dev/shm"] {
            assert!(!may_relabel(Path::new(path)), "{path}");
        }
        for path in ["/var/lib/kubelet/pods/x/volumes", "/srv/web", "/home/alice", "/device"] {
            assert!(may_relabel(Path::new(path)), "{path}");
        }
    }
}

//! Capability sets of a container's process.
//!
//! Bounding, effective and permitted are equal. Inheritable is empty, because a program with inheritable file
//! capabilities would regain what an unprivileged user gave up; only where a request names ambient capabilities are
//! these inheritable too, since the kernel has no ambient capability that is not.
//! Nothing is granted that the daemon itself lacks: the OCI runtime could not grant it.

use std::fmt;

use super::SpecError;
use super::oci::Capabilities;
use super::request::Request;

/// Names without `CAP_`, the index is the kernel's number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has that asks for nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const FIELD: &str = "linux.security_context.capabilities";
const ALL: &str = "ALL";

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapSet(u64);

impl CapSet {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// All that this program knows.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// From the mask of a line such as `CapBnd` in `/proc/<pid>/status`; unknown bits are left out.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// One bit for each number of the kernel's.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The set of one capability: its name in any case, with or without `CAP_`.
    pub fn named(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES.iter().position(|known| *known == bare).map(|number| Self(1 << number))
    }

    /// In either set.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// In both sets.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// In this one and not in the other.
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        other.difference(self) == Self::EMPTY
    }

    /// `CAP_…`, sorted by number.
    pub fn names(self) -> Vec<String> {
        let numbered = NAMES.iter().enumerate();
        numbered.filter(|(n, _)| self.0 & (1 << n) != 0).map(|(_, name)| format!("CAP_{name}")).collect()
    }
}

impl fmt::Display for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

impl FromIterator<CapSet> for CapSet {
    fn from_iter<I: IntoIterator<Item = CapSet>>(sets: I) -> Self {
        sets.into_iter().fold(Self::EMPTY, Self::union)
    }
}

pub(super) fn sets(request: &Request<'_>) -> Result<Capabilities, SpecError> {
    let granted = granted(request)?.names();
    let ambient = ambient(request)?.names();
    Ok(Capabilities {
        bounding: granted.clone(),
        effective: granted.clone(),
        permitted: granted,
        inheritable: ambient.clone(),
        ambient,
    })
}

/// Default or, with `add: ALL`, everything; nothing of that with `drop: ALL`; then what is added by name, then
/// without what is dropped by name.
fn granted(request: &Request<'_>) -> Result<CapSet, SpecError> {
    let node = request.inputs.node.capabilities;
    let default = DEFAULT.iter().filter_map(|name| CapSet::named(name)).collect::<CapSet>();
    let Some(asked) = &request.security.capabilities else {
        return Ok(if request.privileged() { node } else { default.intersection(node) });
    };
    let add = parse("add_capabilities", &asked.add_capabilities)?;
    let drop = parse("drop_capabilities", &asked.drop_capabilities)?;
    if request.privileged() {
        return Ok(node);
    }
    let base = match (add.all, drop.all) {
        (_, true) => CapSet::EMPTY,
        (true, false) => node,
        (false, false) => default.intersection(node),
    };
    let wanted = add.named.difference(drop.named);
    if !node.contains(wanted) {
        let lacking = wanted.difference(node);
        return Err(SpecError::unsupported(lacking.to_string(), "the runtime itself does not have it"));
    }
    Ok(base.union(wanted).difference(drop.named))
}

fn ambient(request: &Request<'_>) -> Result<CapSet, SpecError> {
    let Some(asked) = &request.security.capabilities else { return Ok(CapSet::EMPTY) };
    let ambient = parse("add_ambient_capabilities", &asked.add_ambient_capabilities)?;
    let granted = granted(request)?;
    let wanted = if ambient.all { granted } else { ambient.named };
    if !granted.contains(wanted) {
        let reason = format!("{} is not among the container's capabilities", wanted.difference(granted));
        return Err(SpecError::invalid(format!("{FIELD}.add_ambient_capabilities"), reason));
    }
    Ok(wanted)
}

struct Asked {
    all: bool,
    named: CapSet,
}

fn parse(list: &str, names: &[String]) -> Result<Asked, SpecError> {
    let mut asked = Asked { all: false, named: CapSet::EMPTY };
    for name in names {
        if name.eq_ignore_ascii_case(ALL) {
            asked.all = true;
            continue;
        }
        let one = CapSet::named(name).ok_or_else(|| {
            SpecError::invalid(format!("{FIELD}.{list}"), format!("unknown capability {name:?}"))
        })?;
        asked.named = asked.named.union(one);
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;
    use super::*;
    use proptest::prelude::*;

    fn resolve(add: &[&str], drop: &[&str], node: CapSet) -> Result<Capabilities, SpecError> {
        let mut case = Case::new();
        case.node.capabilities = node;
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        case.security().capabilities = Some(proto::cri::Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            add_ambient_capabilities: Vec::new(),
        });
        let inputs = case.inputs();
        sets(&Request::new(&inputs)?)
    }

    fn caps(names: &[&str]) -> CapSet {
        names.iter().map(|name| CapSet::named(name).unwrap()).collect()
    }

    #[test]
    fn adding_and_dropping() {
        let without_resource = CapSet::ALL.difference(caps(&["SYS_RESOURCE"]));
        let default = caps(&DEFAULT);
        let check = |add: &[&str], drop: &[&str], expect: CapSet| {
            let sets = resolve(add, drop, without_resource).unwrap();
            assert_eq!(sets.bounding, expect.names(), "{add:?} {drop:?}");
        };
        check(&[], &[], default);
        check(&["NET_ADMIN"], &[], default.union(caps(&["NET_ADMIN"])));
        check(&["CAP_NET_ADMIN"], &[], default.union(caps(&["NET_ADMIN"])));
        check(&["cap_net_admin", "sys_time"], &[], default.union(caps(&["NET_ADMIN", "SYS_TIME"])));
        check(&[], &["NET_RAW"], default.difference(caps(&["NET_RAW"])));
        check(&[], &["CAP_NET_RAW", "SYS_ADMIN"], default.difference(caps(&["NET_RAW"])));
        check(&["ALL"], &[], without_resource);
        check(&["all"], &["NET_RAW"], without_resource.difference(caps(&["NET_RAW"])));
        check(&[], &["ALL"], CapSet::EMPTY);
        check(&["NET_BIND_SERVICE"], &["ALL"], caps(&["NET_BIND_SERVICE"]));
        check(&["ALL"], &["ALL"], CapSet::EMPTY);
        check(&["ALL", "KILL"], &["ALL"], caps(&["KILL"]));
        check(&["KILL"], &["KILL"], default.difference(caps(&["KILL"])));
    }

    #[test]
    fn names_that_do_not_exist_or_cannot_be_granted_are_named() {
        let check = |add: &[&str], drop: &[&str], message: &str| {
            let node = CapSet::ALL.difference(caps(&["SYS_RESOURCE"]));
            assert_eq!(resolve(add, drop, node).unwrap_err().to_string(), message);
        };
        let add = "invalid linux.security_context.capabilities.add_capabilities: unknown capability";
        check(&["NET_ADMNI"], &[], &format!("{add} \"NET_ADMNI\""));
        check(&[""], &[], &format!("{add} \"\""));
        check(&["CAP_CAP_KILL"], &[], &format!("{add} \"CAP_CAP_KILL\""));
        check(
            &[],
            &["X"],
            "invalid linux.security_context.capabilities.drop_capabilities: unknown capability \"X\"",
        );
        check(
            &["SYS_RESOURCE"],
            &[],
            "CAP_SYS_RESOURCE is asked for, but the runtime itself does not have it",
        );
    }

    #[test]
    fn privileged_has_what_the_node_has() {
        let mut case = Case::privileged();
        case.node.capabilities = caps(&["KILL", "SYS_ADMIN"]);
        case.security().capabilities =
            Some(proto::cri::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
        let spec = case.generate().unwrap();
        assert_eq!(spec.process.capabilities.effective, caps(&["KILL", "SYS_ADMIN"]).names());
    }

    #[test]
    fn ambient_capabilities_are_granted_ones_and_only_they_are_inheritable() {
        let resolve = |ambient: &[&str]| {
            let mut case = Case::new();
            let ambient = ambient.iter().map(|n| n.to_string()).collect();
            case.security().capabilities =
                Some(proto::cri::Capability { add_ambient_capabilities: ambient, ..Default::default() });
            case.generate().map(|spec| spec.process.capabilities)
        };
        let sets = resolve(&["NET_BIND_SERVICE"]).unwrap();
        assert_eq!(
            (&sets.ambient, &sets.inheritable),
            (&sets.inheritable, &vec!["CAP_NET_BIND_SERVICE".into()])
        );
        assert_eq!(resolve(&["ALL"]).unwrap().ambient, caps(&DEFAULT).names());
        assert!(resolve(&["SYS_ADMIN"]).is_err());
    }

    proptest! {
        #[test]
        fn the_sets_stay_within_the_node_and_nothing_is_inheritable(
            add in prop::collection::vec(0..=NAMES.len(), 0..8),
            drop in prop::collection::vec(0..=NAMES.len(), 0..8),
            node in any::<u64>(),
        ) {
            let name = |n: &usize| NAMES.get(*n).copied().unwrap_or(ALL);
            let (add, drop): (Vec<_>, Vec<_>) = (add.iter().map(name).collect(), drop.iter().map(name).collect());
            let node = CapSet::from_bits(node);
            if let Ok(sets) = resolve(&add, &drop, node) {
                prop_assert!(sets.inheritable.is_empty() && sets.ambient.is_empty());
                prop_assert_eq!(&sets.bounding, &sets.effective);
                prop_assert_eq!(&sets.bounding, &sets.permitted);
                for cap in &sets.bounding {
                    let one = CapSet::named(cap).unwrap();
                    prop_assert!(node.contains(one));
                    prop_assert!(!drop.iter().any(|d| CapSet::named(d) == Some(one)));
                    let asked = add.contains(&ALL) && !drop.contains(&ALL)
                        || add.iter().any(|a| CapSet::named(a) == Some(one))
                        || caps(&DEFAULT).contains(one) && !drop.contains(&ALL);
                    prop_assert!(asked);
                }
            } else {
                prop_assert!(add.iter().any(|a| CapSet::named(a).is_some_and(|one| !node.contains(one))));
            }
        }
    }
}

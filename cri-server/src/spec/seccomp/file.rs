//! Profiles of the node's administrator: the text of an OCI `linux.seccomp` object, or the wider form that container
//! engines use, whose rules may depend on capabilities, architecture and kernel.

use serde::Deserialize;

use super::super::capabilities::CapSet;
use super::super::oci::{Seccomp, Syscall, SyscallArg};
use super::super::{Machine, SpecError};

const MAX_BYTES: usize = 1 << 20;
const MAX_RULES: usize = 4096;

/// Notifications are left out: nobody would listen, and the container would hang.
const ACTIONS: [&str; 8] = [
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
];

const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

/// What conditional rules are decided by.
pub(super) struct Target {
    pub capabilities: CapSet,
    pub machine: Machine,
    pub kernel: (u32, u32),
}

/// Parses and checks a profile, and keeps the rules that are for `target`.
pub(super) fn parse(reference: &str, content: &[u8], target: &Target) -> Result<Seccomp, SpecError> {
    let invalid = |reason: String| SpecError::invalid(format!("seccomp profile {reference:?}"), reason);
    if content.len() > MAX_BYTES {
        return Err(invalid(format!("longer than {MAX_BYTES} bytes")));
    }
    let profile: Profile = serde_json::from_slice(content)
        .map_err(|source| SpecError::SeccompSyntax { reference: reference.into(), source })?;
    profile.resolve(target).map_err(invalid)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<String>>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Arg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    value_two: Option<u64>,
    op: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Profile {
    fn resolve(self, target: &Target) -> Result<Seccomp, String> {
        known("default action", &self.default_action, &ACTIONS)?;
        let rules = self.syscalls.unwrap_or_default();
        if rules.len() > MAX_RULES {
            return Err(format!("more than {MAX_RULES} rules"));
        }
        let mut syscalls = Vec::new();
        for rule in rules {
            syscalls.extend(rule.resolve(target)?);
        }
        Ok(Seccomp {
            default_action: self.default_action,
            default_errno_ret: self.default_errno_ret,
            architectures: architectures(self.architectures, self.arch_map, target.machine)?,
            flags: self.flags.unwrap_or_default(),
            syscalls,
        })
    }
}

fn architectures(
    list: Option<Vec<String>>,
    map: Option<Vec<ArchMap>>,
    machine: Machine,
) -> Result<Vec<String>, String> {
    let (list, map) = (list.unwrap_or_default(), map.unwrap_or_default());
    if !list.is_empty() && !map.is_empty() {
        return Err("both architectures and archMap are set".into());
    }
    let native = super::architectures(machine)[0];
    let own = map.into_iter().find(|entry| entry.architecture == native);
    let Some(own) = own else { return Ok(list) };
    Ok(std::iter::once(own.architecture).chain(own.sub_architectures.unwrap_or_default()).collect())
}

impl Rule {
    fn resolve(self, target: &Target) -> Result<Option<Syscall>, String> {
        let names = match (self.name, self.names.unwrap_or_default()) {
            (Some(name), names) if names.is_empty() => vec![name],
            (None, names) if !names.is_empty() => names,
            _ => return Err("a rule has neither or both of name and names".into()),
        };
        known("action", &self.action, &ACTIONS)?;
        let args = self.args.unwrap_or_default().into_iter().map(Arg::resolve).collect::<Result<_, _>>()?;
        let wanted = match &self.includes {
            Some(condition) => condition.all_hold(target)?,
            None => true,
        };
        let unwanted = match &self.excludes {
            Some(condition) => condition.any_holds(target)?,
            None => false,
        };
        let rule = Syscall { names, action: self.action, errno_ret: self.errno_ret, args };
        Ok((wanted && !unwanted).then_some(rule))
    }
}

impl Arg {
    fn resolve(self) -> Result<SyscallArg, String> {
        known("operator", &self.op, &OPERATORS)?;
        if self.index > 5 {
            return Err(format!("argument {} of a system call; there are 0 to 5", self.index));
        }
        let value_two = self.value_two.unwrap_or_default();
        Ok(SyscallArg { index: self.index, value: self.value, value_two, op: self.op })
    }
}

impl Condition {
    fn all_hold(&self, target: &Target) -> Result<bool, String> {
        Ok(self.facts(target)?.into_iter().flatten().all(|holds| holds))
    }

    fn any_holds(&self, target: &Target) -> Result<bool, String> {
        let caps = self.caps.iter().flatten().any(|cap| has(target, cap));
        Ok(caps || self.facts(target)?.into_iter().skip(1).flatten().any(|holds| holds))
    }

    /// Capabilities, architecture, kernel; `None` where the condition says nothing.
    fn facts(&self, target: &Target) -> Result<[Option<bool>; 3], String> {
        let caps = self.caps.as_ref().filter(|caps| !caps.is_empty());
        let arches = self.arches.as_ref().filter(|arches| !arches.is_empty());
        let arch = match target.machine {
            Machine::X86_64 => "amd64",
            Machine::Aarch64 => "arm64",
        };
        let kernel = self.min_kernel.as_deref().filter(|text| !text.is_empty());
        let kernel = kernel.map(|text| version(text).map(|least| target.kernel >= least)).transpose()?;
        Ok([
            caps.map(|caps| caps.iter().all(|cap| has(target, cap))),
            arches.map(|arches| arches.iter().any(|name| name == arch)),
            kernel,
        ])
    }
}

fn has(target: &Target, capability: &str) -> bool {
    CapSet::named(capability).is_some_and(|one| target.capabilities.contains(one))
}

fn version(text: &str) -> Result<(u32, u32), String> {
    let number = |part: &str| part.parse().ok();
    let parts = text.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    parts.ok_or_else(|| format!("minKernel {text:?} is not <major>.<minor>"))
}

fn known(what: &str, value: &str, all: &[&str]) -> Result<(), String> {
    if all.contains(&value) { Ok(()) } else { Err(format!("{what} {value:?} is not supported")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn target(capabilities: CapSet) -> Target {
        Target { capabilities, machine: Machine::X86_64, kernel: (5, 10) }
    }

    fn resolve(profile: Value) -> Result<Value, SpecError> {
        let target = target(CapSet::named("SYS_TIME").unwrap());
        let profile = parse("p.json", profile.to_string().as_bytes(), &target)?;
        Ok(serde_json::to_value(profile).unwrap())
    }

    #[test]
    fn an_oci_profile_stays_as_it_is() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{
                "names": ["read", "write"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
            }],
        });
        assert_eq!(resolve(profile.clone()).unwrap(), profile);
        assert_eq!(
            resolve(json!({"defaultAction": "SCMP_ACT_ALLOW"})).unwrap(),
            json!({"defaultAction": "SCMP_ACT_ALLOW"})
        );
    }

    /// Whether a rule with these conditions stays.
    fn stays(conditions: Value) -> bool {
        let mut rule = json!({"names": ["stime"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "x"});
        rule.as_object_mut().unwrap().extend(conditions.as_object().unwrap().clone());
        let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]});
        !resolve(profile).unwrap()["syscalls"].is_null()
    }

    #[test]
    fn conditional_rules() {
        let check =
            |conditions: Value, expect: bool| assert_eq!(stays(conditions.clone()), expect, "{conditions}");
        check(json!({}), true);
        check(json!({"includes": {}, "excludes": {}}), true);
        check(json!({"includes": null}), true);
        check(json!({"includes": {"caps": ["CAP_SYS_TIME"]}}), true);
        check(json!({"includes": {"caps": ["CAP_SYS_TIME", "CAP_SYS_ADMIN"]}}), false);
        check(json!({"includes": {"caps": ["CAP_NEW"]}}), false);
        check(json!({"includes": {"arches": ["amd64", "x32"]}}), true);
        check(json!({"includes": {"arches": ["arm64"]}}), false);
        check(json!({"includes": {"minKernel": "4.8"}}), true);
        check(json!({"includes": {"minKernel": "5.10"}}), true);
        check(json!({"includes": {"minKernel": "5.11"}}), false);
        check(json!({"includes": {"arches": ["amd64"], "minKernel": "6.0"}}), false);
        check(json!({"excludes": {"caps": ["CAP_SYS_TIME", "CAP_SYS_ADMIN"]}}), false);
        check(json!({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}), true);
        check(json!({"excludes": {"arches": ["s390", "s390x"]}}), true);
        check(json!({"excludes": {"arches": ["amd64"], "caps": ["CAP_SYS_ADMIN"]}}), false);
        check(json!({"excludes": {"minKernel": "5.0"}}), false);
    }

    #[test]
    fn architectures_come_from_the_map_of_the_machine() {
        let map = json!([
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
            {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": null},
        ]);
        let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "archMap": map});
        let got = resolve(profile).unwrap();
        assert_eq!(got["architectures"], json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
    }

    #[test]
    fn the_older_form_with_one_name() {
        let rule = json!({"name": "read", "action": "SCMP_ACT_ALLOW"});
        let got = resolve(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})).unwrap();
        assert_eq!(got["syscalls"][0]["names"], json!(["read"]));
    }

    #[test]
    fn profiles_that_are_none() {
        let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]});
        let check = |profile: Value| assert!(resolve(profile.clone()).is_err(), "{profile}");
        check(json!({}));
        check(json!([]));
        check(json!({"defaultAction": "ALLOW"}));
        check(json!({"defaultAction": "SCMP_ACT_NOTIFY"}));
        check(rule(json!({"names": ["read"]})));
        check(rule(json!({"names": [], "action": "SCMP_ACT_ALLOW"})));
        check(rule(json!({"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"})));
        check(rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})));
        let arg = |arg: Value| rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [arg]}));
        check(arg(json!({"index": 6, "value": 0, "op": "SCMP_CMP_EQ"})));
        check(arg(json!({"index": 0, "value": 0, "op": "=="})));
        check(arg(json!({"index": 0, "value": -1, "op": "SCMP_CMP_EQ"})));
        check(rule(json!({"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "x"}})));
        check(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["A"],
            "archMap": [{"architecture": "B"}]}));
        let rules = vec![json!({"names": ["a"], "action": "SCMP_ACT_ALLOW"}); MAX_RULES + 1];
        check(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
        assert!(parse("p", &vec![b' '; MAX_BYTES + 1], &target(CapSet::EMPTY)).is_err());
        let deep = format!("{{\"defaultAction\":\"SCMP_ACT_LOG\",\"x\":{}", "[".repeat(500_000));
        assert!(parse("p", deep.as_bytes(), &target(CapSet::EMPTY)).is_err());
    }
}

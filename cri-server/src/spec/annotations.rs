//! Names of the CRI object as annotations under the keys that tools for containerd read.
//! Annotations and labels of the request never get here: OCI runtimes obey some of them.

use std::collections::BTreeMap;

use super::CgroupVersion;
use super::oci::{Cpu, Memory, Resources};
use super::request::Request;

const PREFIX: &str = "io.kubernetes.cri.";

/// Prefix of the properties that an OCI runtime gives a scope.
const PROPERTY: &str = "org.systemd.property.";
/// crun makes no cgroup in the scope, so that limits and statistics are the scope's own, and systemd forgets a scope
/// that failed.
const FOR_SCOPES: [(&str, &str); 2] =
    [("run.oci.systemd.subgroup", ""), ("org.systemd.property.CollectMode", "'inactive-or-failed'")];
/// Microseconds of a period where nobody says otherwise.
const PERIOD_US: u64 = 100_000;
/// Microseconds in a second of more processors than there are; systemd multiplies with them.
const MOST_US: u64 = 1_000_000_000_000;

pub(super) fn list(request: &Request<'_>) -> BTreeMap<String, String> {
    let inputs = request.inputs;
    let mut list = BTreeMap::new();
    let mut add = |key: &str, value: &str| drop(list.insert(format!("{PREFIX}{key}"), value.to_string()));
    add("container-type", "container");
    add("sandbox-id", inputs.ids.pod.as_str());
    if let Some(pod) = &inputs.sandbox.metadata {
        add("sandbox-name", &pod.name);
        add("sandbox-namespace", &pod.namespace);
        add("sandbox-uid", &pod.uid);
    }
    if let Some(container) = &inputs.config.metadata {
        add("container-name", &container.name);
    }
    if let Some(image) = &inputs.config.image {
        let asked = &image.user_specified_image;
        add("image-name", if asked.is_empty() { &image.image } else { asked });
    }
    list
}

/// What the OCI runtime asks of systemd besides. Some tell it no limits, or not all, and write these into the scope's
/// files alone; systemd would take them back when it next reads its configuration.
pub(super) fn for_systemd(request: &Request<'_>, resources: &Resources) -> BTreeMap<String, String> {
    let path = request.inputs.cgroups_path;
    if path.is_empty() || path.starts_with('/') {
        return BTreeMap::new();
    }
    let mut list = BTreeMap::from(FOR_SCOPES.map(|(key, value)| (key.to_string(), value.to_string())));
    if request.inputs.node.cgroups == CgroupVersion::V2 {
        let limit = |(name, value): (&str, u64)| (format!("{PROPERTY}{name}"), format!("uint64 {value}"));
        list.extend(limits(resources).into_iter().map(limit));
    }
    list
}

/// Limits under the names and in the units of systemd.
fn limits(resources: &Resources) -> Vec<(&'static str, u64)> {
    let mut list = Vec::new();
    if resources.pids.is_none() {
        // Its own default is a part of what the kernel allows.
        list.push(("TasksMax", u64::MAX));
    }
    let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(u64::MAX);
    if let Some(Memory { limit, swap }) = &resources.memory {
        list.extend(limit.map(|limit| ("MemoryMax", bytes(limit))));
        let without_memory = |both: i64| both.checked_sub(limit.unwrap_or(0)).filter(|_| both >= 0);
        list.extend(swap.map(|both| ("MemorySwapMax", without_memory(both).map_or(u64::MAX, bytes))));
    }
    if let Some(Cpu { quota: Some(quota @ 1..), period, .. }) = &resources.cpu {
        let (quota, period) = (u128::from(quota.unsigned_abs()), period.unwrap_or(PERIOD_US));
        let share = (quota * 1_000_000).div_ceil(u128::from(period.max(1)));
        list.push(("CPUQuotaPerSecUSec", u64::try_from(share).unwrap_or(MOST_US).min(MOST_US)));
        list.push(("CPUQuotaPeriodUSec", period));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;
    use super::super::oci::Pids;
    use super::*;

    #[test]
    fn a_scope_of_systemd_is_the_containers_whole_cgroup() {
        let mut case = Case::new();
        assert!(!case.generate().unwrap().annotations.contains_key("run.oci.systemd.subgroup"));
        case.cgroups_path = "a.slice:cri-berth:c".into();
        let spec = case.generate().unwrap();
        assert_eq!(spec.annotations["run.oci.systemd.subgroup"], "");
        assert_eq!(spec.annotations["org.systemd.property.CollectMode"], "'inactive-or-failed'");
    }

    #[test]
    fn systemd_is_told_the_limits() {
        let check = |memory: Option<(i64, i64)>, cpu: Option<(i64, Option<u64>)>, expect: &[(&str, u64)]| {
            let memory = memory.map(|(limit, swap)| Memory { limit: Some(limit), swap: Some(swap) });
            let cpu = cpu.map(|(quota, period)| Cpu { quota: Some(quota), period, ..Cpu::default() });
            let pids = Some(Pids { limit: 7 });
            assert_eq!(limits(&Resources { memory, cpu, pids, ..Resources::default() }), expect);
        };
        assert_eq!(limits(&Resources::default()), [("TasksMax", u64::MAX)]);
        check(None, None, &[]);
        check(Some((100, 150)), None, &[("MemoryMax", 100), ("MemorySwapMax", 50)]);
        check(Some((-1, -1)), None, &[("MemoryMax", u64::MAX), ("MemorySwapMax", u64::MAX)]);
        check(None, Some((-1, None)), &[]);
        let share = |share, period| [("CPUQuotaPerSecUSec", share), ("CPUQuotaPeriodUSec", period)];
        check(None, Some((50_000, None)), &share(500_000, 100_000));
        check(None, Some((10_000, Some(30_000))), &share(333_334, 30_000));
        check(None, Some((i64::MAX / 1_000, Some(1_000))), &share(MOST_US, 1_000));
    }

    #[test]
    fn annotations_and_labels_of_the_request_change_nothing() {
        let plain = Case::new().generate().unwrap();
        let mut case = Case::new();
        for (key, value) in [
            ("run.oci.systemd.subgroup", "x"),
            ("run.oci.seccomp_fail_unknown_syscall", "1"),
            ("io.kubernetes.cri.container-type", "sandbox"),
            ("io.kubernetes.cri-o.Devices", "/dev/sda"),
            ("cpu-load-balancing.crio.io", "disable"),
        ] {
            case.config.annotations.insert(key.into(), value.into());
            case.config.labels.insert(key.into(), value.into());
            case.sandbox.annotations.insert(key.into(), value.into());
            case.sandbox.labels.insert(key.into(), value.into());
        }
        assert_eq!(case.generate().unwrap(), plain);
    }
}

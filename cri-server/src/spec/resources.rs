//! Limits: CPU, memory, huge pages, tasks. The same fields serve cgroup v1 and v2; the OCI runtime converts.

use std::collections::BTreeMap;

use proto::cri;

use super::oci::{Cpu, HugepageLimit, Memory, Pids, Resources};
use super::request::Request;
use super::{Availability, CgroupVersion, NodeFacts, SpecError, devices};

const FIELD: &str = "linux.resources";
const MAX_LIST: usize = 4096;

pub(super) fn resources(request: &Request<'_>) -> Result<Resources, SpecError> {
    let inputs = request.inputs;
    let asked = inputs.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let limits = asked.map(|asked| linux_resources(asked, inputs.node)).transpose()?.unwrap_or_default();
    Ok(Resources {
        devices: devices::rules(request)?,
        pids: inputs.pids_limit.map(|limit| Pids { limit }),
        ..limits
    })
}

/// The limits of a CRI message alone, as for UpdateContainerResources: no device rules, no limit of tasks.
pub fn linux_resources(
    asked: &cri::LinuxContainerResources,
    node: &NodeFacts,
) -> Result<Resources, SpecError> {
    Ok(Resources {
        devices: Vec::new(),
        memory: memory(asked, node)?,
        cpu: cpu(asked)?,
        pids: None,
        hugepage_limits: hugepages(asked, node)?,
        unified: unified(asked, node)?,
    })
}

fn cpu(asked: &cri::LinuxContainerResources) -> Result<Option<Cpu>, SpecError> {
    let shares = within("cpu_shares", asked.cpu_shares, 2..=262_144)?;
    let period = within("cpu_period", asked.cpu_period, 1_000..=1_000_000)?;
    let quota = match asked.cpu_quota {
        -1 => Some(-1),
        quota => within("cpu_quota", quota, 1_000..=i64::MAX / 1_000)?,
    };
    let cpu = Cpu {
        shares: shares.map(i64::unsigned_abs),
        quota,
        period: period.map(i64::unsigned_abs),
        cpus: set("cpuset_cpus", &asked.cpuset_cpus)?,
        mems: set("cpuset_mems", &asked.cpuset_mems)?,
    };
    Ok(Some(cpu).filter(|cpu| *cpu != Cpu::default()))
}

fn memory(asked: &cri::LinuxContainerResources, node: &NodeFacts) -> Result<Option<Memory>, SpecError> {
    let limit = bytes("memory_limit_in_bytes", asked.memory_limit_in_bytes)?;
    let swap = bytes("memory_swap_limit_in_bytes", asked.memory_swap_limit_in_bytes)?;
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap != -1
        && (swap < limit || limit == -1)
    {
        return Err(invalid(
            "memory_swap_limit_in_bytes",
            format!("{swap} includes the memory and is less than its limit {limit}"),
        ));
    }
    // Equal limits: no swap, unless the request says otherwise.
    let swap = swap.or(limit).filter(|_| node.swap_accounting == Availability::Present);
    let memory = Memory { limit, swap };
    Ok(Some(memory).filter(|memory| *memory != Memory::default()))
}

fn hugepages(
    asked: &cri::LinuxContainerResources,
    node: &NodeFacts,
) -> Result<Vec<HugepageLimit>, SpecError> {
    let mut limits: BTreeMap<u64, HugepageLimit> = BTreeMap::new();
    for limit in &asked.hugepage_limits {
        let size = page_size(&limit.page_size).ok_or_else(|| {
            let reason = format!("{:?} is not a page size such as 2MB", limit.page_size);
            invalid("hugepage_limits.page_size", reason)
        })?;
        if !node.huge_page_sizes.is_empty() && !node.huge_page_sizes.contains(&size) {
            let reason = format!("this node has no huge pages of {}", limit.page_size);
            return Err(invalid("hugepage_limits.page_size", reason));
        }
        let limit = HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit };
        if limits.insert(size, limit).is_some() {
            return Err(invalid("hugepage_limits.page_size", "the same size twice"));
        }
    }
    // The kubelet states a limit for each of the node's sizes, so that without the controller it means nothing.
    let present = node.hugetlb == Availability::Present;
    Ok(if present { limits.into_values().collect() } else { Vec::new() })
}

/// `<number>KB`, `MB` or `GB`, in bytes.
fn page_size(text: &str) -> Option<u64> {
    let (digits, shift) = [("KB", 10), ("MB", 20), ("GB", 30)]
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits, *shift)))?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) || digits.starts_with('0') {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn unified(
    asked: &cri::LinuxContainerResources,
    node: &NodeFacts,
) -> Result<BTreeMap<String, String>, SpecError> {
    if asked.unified.is_empty() {
        return Ok(BTreeMap::new());
    }
    if node.cgroups != CgroupVersion::V2 {
        let feature = format!("{FIELD}.unified");
        return Err(SpecError::unsupported(feature, "this node's controllers are on cgroup v1"));
    }
    for (name, value) in &asked.unified {
        let file = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        let controller = name.split('.').next().unwrap_or_default();
        let known =
            ["cpu", "cpuset", "io", "memory", "hugetlb", "pids", "rdma", "misc"].contains(&controller);
        if !known || !name.contains('.') || name.len() > 255 || !name.bytes().all(file) {
            return Err(invalid("unified", format!("{name:?} is not the file of a controller")));
        }
        if value.contains('\0') || value.len() > MAX_LIST {
            return Err(invalid("unified", format!("the value of {name:?} is too long or holds a NUL byte")));
        }
    }
    Ok(asked.unified.clone())
}

fn within(name: &str, value: i64, range: std::ops::RangeInclusive<i64>) -> Result<Option<i64>, SpecError> {
    match value {
        0 => Ok(None),
        value if range.contains(&value) => Ok(Some(value)),
        value => Err(invalid(name, format!("{value} is not between {} and {}", range.start(), range.end()))),
    }
}

fn bytes(name: &str, value: i64) -> Result<Option<i64>, SpecError> {
    match value {
        0 => Ok(None),
        -1.. => Ok(Some(value)),
        _ => Err(invalid(name, format!("{value} is negative"))),
    }
}

fn set(name: &str, text: &str) -> Result<Option<String>, SpecError> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = |n: &str| !n.is_empty() && n.len() <= 6 && n.bytes().all(|b| b.is_ascii_digit());
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first) && number(last),
        None => number(part),
    };
    if text.len() > MAX_LIST || !text.split(',').all(range) {
        return Err(invalid(name, format!("{text:?} is not a list such as 0-3,7")));
    }
    Ok(Some(text.into()))
}

fn invalid(name: &str, reason: impl Into<String>) -> SpecError {
    SpecError::invalid(format!("{FIELD}.{name}"), reason)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;
    use super::*;
    use serde_json::json;

    type Asked = cri::LinuxContainerResources;

    fn node(cgroups: CgroupVersion) -> NodeFacts {
        NodeFacts { cgroups, hugetlb: Availability::Present, ..Case::new().node }
    }

    fn check(change: impl FnOnce(&mut Asked), expect: serde_json::Value) {
        let mut asked = Asked::default();
        change(&mut asked);
        let got = linux_resources(&asked, &node(CgroupVersion::V2)).unwrap();
        let mut got = serde_json::to_value(got).unwrap();
        got.as_object_mut().unwrap().remove("devices");
        assert_eq!(got, expect);
    }

    fn refuse(change: impl FnOnce(&mut Asked), name: &str) {
        let mut asked = Asked::default();
        change(&mut asked);
        match linux_resources(&asked, &node(CgroupVersion::V2)) {
            Err(SpecError::InvalidArgument { field, .. }) => {
                assert_eq!(field, format!("linux.resources.{name}"))
            }
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn limits() {
        check(|_| {}, json!({}));
        check(
            |r| (r.cpu_period, r.cpu_quota, r.cpu_shares) = (100_000, 50_000, 512),
            json!({"cpu": {"shares": 512, "quota": 50000, "period": 100000}}),
        );
        check(|r| r.cpu_quota = -1, json!({"cpu": {"quota": -1}}));
        check(
            |r| (r.cpuset_cpus, r.cpuset_mems) = ("0-3,7".into(), "0".into()),
            json!({"cpu": {"cpus": "0-3,7", "mems": "0"}}),
        );
        check(|r| r.memory_limit_in_bytes = 1 << 20, json!({"memory": {"limit": 1048576, "swap": 1048576}}));
        check(
            |r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (1 << 20, 1 << 21),
            json!({"memory": {"limit": 1048576, "swap": 2097152}}),
        );
        check(
            |r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (1 << 20, -1),
            json!({"memory": {"limit": 1048576, "swap": -1}}),
        );
        check(|r| r.memory_limit_in_bytes = -1, json!({"memory": {"limit": -1, "swap": -1}}));
        check(
            |r| {
                let limit = |page_size: &str| cri::HugepageLimit { page_size: page_size.into(), limit: 0 };
                r.hugepage_limits = vec![limit("1GB"), limit("2MB")];
            },
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}]}),
        );
        check(
            |r| drop(r.unified.insert("memory.high".into(), "1000".into())),
            json!({"unified": {"memory.high": "1000"}}),
        );
    }

    #[test]
    fn values_out_of_range_name_their_field() {
        for value in [-1, 1, 999, 1_000_001, i64::MAX, i64::MIN] {
            refuse(|r| r.cpu_period = value, "cpu_period");
        }
        for value in [-1, 1, 262_145, i64::MAX] {
            refuse(|r| r.cpu_shares = value, "cpu_shares");
        }
        for value in [-2, 1, 999, i64::MAX] {
            refuse(|r| r.cpu_quota = value, "cpu_quota");
        }
        refuse(|r| r.memory_limit_in_bytes = -2, "memory_limit_in_bytes");
        refuse(|r| r.memory_swap_limit_in_bytes = i64::MIN, "memory_swap_limit_in_bytes");
        refuse(
            |r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (100, 99),
            "memory_swap_limit_in_bytes",
        );
        for text in ["a", "0,", "0--1", "1-", ",", "0 1", "0\n", "٣"] {
            refuse(|r| r.cpuset_cpus = text.into(), "cpuset_cpus");
            refuse(|r| r.cpuset_mems = text.into(), "cpuset_mems");
        }
        for size in
            ["", "MB", "2", "2mb", "-2MB", "02MB", "2MB\n", "99999999999999999999GB", "../2MB", "3MB", "64KB"]
        {
            let limit = cri::HugepageLimit { page_size: size.into(), limit: 0 };
            refuse(|r| r.hugepage_limits = vec![limit], "hugepage_limits.page_size");
        }
        for name in
            ["", "memory", "../memory.max", "memory.max/..", "cgroup.procs", "Memory.max", "memory.max\n"]
        {
            refuse(|r| drop(r.unified.insert(name.into(), "1".into())), "unified");
        }
    }

    #[test]
    fn what_the_node_lacks() {
        let mut asked = Asked { memory_limit_in_bytes: 1 << 20, ..Default::default() };
        asked.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 0 }];
        let facts = NodeFacts {
            swap_accounting: Availability::Missing,
            hugetlb: Availability::Missing,
            ..node(CgroupVersion::Hybrid)
        };
        let got = linux_resources(&asked, &facts).unwrap();
        assert_eq!(got.memory, Some(Memory { limit: Some(1 << 20), swap: None }));
        assert!(got.hugepage_limits.is_empty());
        let sizes =
            |sizes: &[u64]| NodeFacts { huge_page_sizes: sizes.iter().copied().collect(), ..facts.clone() };
        assert!(linux_resources(&asked, &sizes(&[])).is_ok(), "the sizes are not known");
        assert!(linux_resources(&asked, &sizes(&[1 << 30])).is_err());
        asked.unified.insert("memory.high".into(), "1".into());
        assert!(matches!(linux_resources(&asked, &facts), Err(SpecError::Unsupported { .. })));
    }
}

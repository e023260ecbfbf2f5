//! Metrics as cAdvisor named them: which there are on this node, and what they are for every pod. Read when they are
//! asked for.

mod sample;
mod table;

use std::path::Path;
use std::sync::Arc;

use proto::cri::{ContainerMetrics, Metric, MetricDescriptor, PodSandboxMetrics, UInt64Value};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::cgroup::Layout;
use crate::host::netns::LinkStats;
use crate::spec::Availability;
use crate::steps::stats;
use crate::store;
use crate::store::container::Container;
use crate::store::sandbox::Sandbox;
use sample::Sample;
use table::{CONTAINER, Family, LABELS, NETWORK, Needs};

/// Every metric that the kernel of this node has, by name.
pub fn descriptors(daemon: &Daemon) -> Vec<MetricDescriptor> {
    fn describe<T>(family: &Family<T>) -> MetricDescriptor {
        let keys = LABELS.iter().chain(family.labels);
        MetricDescriptor {
            name: family.name.into(),
            help: family.help.into(),
            label_keys: keys.map(ToString::to_string).collect(),
        }
    }
    let containers = CONTAINER.iter().filter(|family| has(daemon, family.needs)).map(describe);
    let mut all: Vec<_> = containers.chain(NETWORK.iter().map(describe)).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The metrics of every ready pod and its containers. Blocks.
pub fn all(daemon: &Arc<Daemon>) -> Result<Vec<PodSandboxMetrics>, Error> {
    let mut sandboxes = daemon.sandboxes.all();
    sandboxes.retain(|sandbox| sandbox.state().is_ready());
    let links = stats::links_of(&sandboxes);
    let mut of_pods = stats::running_by_pod(daemon);
    let node = sample::Node::look(daemon);
    let mut looked_at = Vec::new();
    let pods = sandboxes.iter().zip(links).map(|(sandbox, links)| {
        let containers = of_pods.remove(sandbox.id()).unwrap_or_default();
        let metrics = pod_metrics((daemon, &node), sandbox, &containers, links.unwrap_or_default());
        looked_at.extend(containers);
        metrics
    });
    let pods = pods.collect();
    stats::walk_stale_layers(daemon, looked_at);
    pods
}

fn pod_metrics(
    (daemon, node): (&Daemon, &sample::Node),
    sandbox: &Sandbox,
    containers: &[Arc<Container>],
    links: Vec<LinkStats>,
) -> Result<PodSandboxMetrics, Error> {
    let metadata = sandbox.fixed.metadata();
    let labels = Labels {
        id: daemon.cgroup(&sandbox.fixed.cgroup_parent)?.path().to_string(),
        name: sandbox.id().to_string(),
        namespace: metadata.namespace,
        pod: metadata.name,
        ..Labels::default()
    };
    let now = store::now();
    let metrics = NETWORK.iter().flat_map(|family| read(family, &links, &labels, now)).collect();
    let mut container_metrics = Vec::new();
    for container in containers {
        container_metrics.extend(metrics_of((daemon, node), container, &labels)?);
    }
    Ok(PodSandboxMetrics { pod_sandbox_id: sandbox.id().to_string(), metrics, container_metrics })
}

fn metrics_of(
    (daemon, node): (&Daemon, &sample::Node),
    container: &Container,
    pod: &Labels,
) -> Result<Option<ContainerMetrics>, Error> {
    let record = container.record();
    let Some(sample) = Sample::take((daemon, node), container)? else { return Ok(None) };
    let labels = Labels {
        container: record.metadata().name,
        id: daemon.cgroup(&record.cgroups_path)?.path().to_string(),
        image: record.config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
        name: record.id.to_string(),
        ..pod.clone()
    };
    let now = store::now();
    let families = CONTAINER.iter().filter(|family| has(daemon, family.needs));
    let metrics = families.flat_map(|family| read(family, &sample, &labels, now)).collect();
    Ok(Some(ContainerMetrics { container_id: record.id.to_string(), metrics }))
}

/// Values of the labels that every metric has, in their order.
#[derive(Debug, Clone, Default)]
struct Labels {
    container: String,
    id: String,
    image: String,
    name: String,
    namespace: String,
    pod: String,
}

fn read<T>(family: &Family<T>, from: &T, labels: &Labels, timestamp: i64) -> Vec<Metric> {
    let Labels { container, id, image, name, namespace, pod } = labels;
    let metric = |(own, value): (Vec<String>, u64)| {
        let fixed = [container, id, image, name, namespace, pod].map(Clone::clone);
        Metric {
            name: family.name.into(),
            timestamp,
            metric_type: family.kind as i32,
            label_values: fixed.into_iter().chain(own).collect(),
            value: Some(UInt64Value { value }),
        }
    };
    family.read(from).into_iter().map(metric).collect()
}

fn has(daemon: &Daemon, needs: Needs) -> bool {
    let v2 = matches!(&*daemon.cgroups, Layout::V2 { .. });
    match needs {
        Needs::Nothing => true,
        Needs::Pressure => v2 && Path::new("/proc/pressure").exists(),
        Needs::Hugetlb => daemon.node.hugetlb == Availability::Present,
        Needs::HugetlbPeak => !v2 && daemon.node.hugetlb == Availability::Present,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::host::cgroup::{DeviceIo, Hugepages, Psi, Stats};

    #[test]
    fn values_have_as_many_labels_as_descriptors_have_keys() {
        let mut sample = Sample::default();
        let psi = Some(Psi::default());
        let (cpu, memory) = (crate::host::cgroup::Cpu { psi, ..Default::default() }, Default::default());
        sample.account.stats =
            Stats { cpu: Some(cpu), memory: Some(memory), io_psi: psi, ..Stats::default() };
        sample.account.stats.memory.as_mut().unwrap().psi = psi;
        sample.account.quota_us = Some(1);
        sample.account.devices = vec![DeviceIo::default()];
        sample.account.hugepages = vec![Hugepages { max_usage: Some(0), ..Hugepages::default() }];
        let mut names = BTreeSet::new();
        let mut check = |name: &'static str, own: usize, metrics: Vec<Metric>| {
            assert!(!metrics.is_empty(), "{name}");
            assert!(metrics.iter().all(|metric| metric.label_values.len() == LABELS.len() + own), "{name}");
            assert!(names.insert(name), "{name} twice");
        };
        for family in &CONTAINER {
            check(family.name, family.labels.len(), read(family, &sample, &Labels::default(), 1));
        }
        let link = LinkStats { name: "eth0".into(), ..Default::default() };
        for family in &NETWORK {
            check(family.name, family.labels.len(), read(family, &vec![link.clone()], &Labels::default(), 1));
        }
        assert_eq!(names.len(), 56);
    }
}

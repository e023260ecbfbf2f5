//! Limits that are changed, what is shown of them, out-of-memory kills, metrics and checkpoints: against the files of
//! the real cgroups.
//!
//! `E2E_OOM_KILLS` sets how many containers run out of memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::case::Case;
use e2e::cgroup::{Cgroup, is_systemd, is_v2};
use e2e::cri::{Cri, container};
use e2e::daemon::Setup;
use e2e::exec::Program;
use e2e::image::set::BUSYBOX;
use e2e::wait;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::cri::{
    self as api, ContainerStatus, LinuxContainerResources as Resources, UpdateContainerResourcesRequest,
};
use tonic::{Code, Status};

const EXIT: Duration = Duration::from_secs(30);
const MIB: i64 = 1 << 20;
const SHARES: ((&str, &str), &str) = (("cpu", "cpu.shares"), "cpu.weight");
const QUOTA: ((&str, &str), &str) = (("cpu", "cpu.cfs_quota_us"), "cpu.max");
const MEMORY: ((&str, &str), &str) = (("memory", "memory.limit_in_bytes"), "memory.max");
const SWAP: ((&str, &str), &str) = (("memory", "memory.memsw.limit_in_bytes"), "memory.swap.max");
const CPUS: ((&str, &str), &str) = (("cpuset", "cpuset.cpus"), "cpuset.cpus");

fn read(cgroup: &Cgroup, (v1, v2): ((&str, &str), &str)) -> Result<String> {
    cgroup.read(v1, v2)
}

/// A pod with one created container that sleeps, with these limits.
async fn sleeper(case: &Case, name: &str, resources: Resources) -> Result<(String, String)> {
    let pod = case.cri.pod(name);
    let pod_id = case.cri.run_pod(&pod).await?;
    let mut config = container("sleeper", BUSYBOX, &["sleep", "100000"]);
    config.linux.get_or_insert_default().resources = Some(resources);
    let id = case.cri.create(&pod_id, &config, &pod).await?;
    Ok((pod_id, id))
}

async fn update(cri: &Cri, id: &str, resources: Resources) -> Result<(), Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(resources),
        ..Default::default()
    };
    cri.runtime.clone().update_container_resources(request).await.map(drop)
}

fn limits(status: &ContainerStatus) -> Resources {
    status.resources.clone().and_then(|resources| resources.linux).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_changed_in_the_cgroup_and_kept() -> Result<()> {
    let test = "limits_are_changed_in_the_cgroup_and_kept";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    let first = Resources { cpu_shares: 512, memory_limit_in_bytes: 64 * MIB, ..Default::default() };
    let (pod_id, id) = sleeper(&case, "limits", first).await?;
    let cgroup = if case.is_berth() { Some(Cgroup::of(&case.cri, &id).await?) } else { None };
    let says = |limit, expect: [&str; 2]| -> Result<()> {
        let Some(cgroup) = &cgroup else { return Ok(()) };
        let (text, expect) = (read(cgroup, limit)?, expect[usize::from(is_v2())]);
        ensure!(text == expect, "{limit:?} says {text:?}, expected {expect:?}");
        Ok(())
    };
    // Created, then running; raised, then lowered; each limit alone keeps the others.
    let memory = |mib: i64| Resources { memory_limit_in_bytes: mib * MIB, ..Default::default() };
    update(&case.cri, &id, memory(256)).await?;
    says(MEMORY, ["268435456", "268435456"])?;
    says(SWAP, ["268435456", "0"])?;
    case.cri.start(&id).await?;
    update(&case.cri, &id, Resources { cpu_quota: 50_000, cpu_period: 100_000, ..Default::default() })
        .await?;
    says(QUOTA, ["50000", "50000 100000"])?;
    says(MEMORY, ["268435456", "268435456"])?;
    let more = Resources {
        cpu_shares: 2048,
        cpu_quota: 40_000,
        cpuset_cpus: "0".into(),
        memory_limit_in_bytes: 32 * MIB,
        memory_swap_limit_in_bytes: 48 * MIB,
        oom_score_adj: 500,
        ..Default::default()
    };
    update(&case.cri, &id, more).await?;
    says(SHARES, ["2048", "79"])?;
    says(QUOTA, ["40000", "40000 100000"])?;
    says(MEMORY, ["33554432", "33554432"])?;
    says(SWAP, ["50331648", "16777216"])?;
    says(CPUS, ["0", "0"])?;
    if is_systemd() {
        // It writes the limits of its units anew.
        Program::new("systemctl").arg("daemon-reload").ok()?;
        says(SHARES, ["2048", "79"])?;
        says(QUOTA, ["40000", "40000 100000"])?;
        says(MEMORY, ["33554432", "33554432"])?;
        says(SWAP, ["50331648", "16777216"])?;
        says(CPUS, ["0", "0"])?;
    }
    if case.is_berth() {
        let score = case.cri.shell(&id, "cat /proc/1/oom_score_adj").await?;
        ensure!(score.trim() == "500", "the score is {score}");
        case.node.kill_daemon()?;
        case.node.start_daemon()?;
        case.cri = case.node.cri().await?;
    }
    let shown = limits(&case.cri.status(&id).await?);
    let expect = Resources {
        cpu_shares: 2048,
        cpu_quota: 40_000,
        cpu_period: 100_000,
        cpuset_cpus: "0".into(),
        memory_limit_in_bytes: 32 * MIB,
        memory_swap_limit_in_bytes: 48 * MIB,
        ..Default::default()
    };
    ensure!(Resources { oom_score_adj: 0, ..shown.clone() } == expect, "{shown:?}");
    case.cri.stop(&id, 0).await?;
    let late = update(&case.cri, &id, memory(64)).await.err().map(|status| status.code());
    ensure!(late == Some(Code::FailedPrecondition) || !case.is_berth(), "{late:?}");
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_changes_nothing() -> Result<()> {
    let Some(case) = Case::open("a_change_that_fails_changes_nothing", Setup::default()).await? else {
        return Ok(());
    };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    let first = Resources { cpu_shares: 512, memory_limit_in_bytes: 64 * MIB, ..Default::default() };
    let (pod_id, id) = sleeper(&case, "whole", first.clone()).await?;
    cri.start(&id).await?;
    let cgroup = Cgroup::of(cri, &id).await?;
    let before = [SHARES, MEMORY, SWAP, CPUS].map(|limit| read(&cgroup, limit).unwrap_or_default());
    let score = |oom_score_adj| Resources { oom_score_adj, ..Default::default() };
    let huge = api::HugepageLimit { page_size: "3MB".into(), limit: 1 };
    let unified = BTreeMap::from([("cgroup.procs".to_owned(), "1".to_owned())]);
    let cases = [
        (Resources { cpu_shares: 1, ..first.clone() }, Code::InvalidArgument, "cpu_shares"),
        (Resources { cpu_period: 7, ..first.clone() }, Code::InvalidArgument, "cpu_period"),
        (Resources { cpu_quota: -7, ..first.clone() }, Code::InvalidArgument, "cpu_quota"),
        (
            Resources { memory_limit_in_bytes: -2, ..Default::default() },
            Code::InvalidArgument,
            "memory_limit_in_bytes",
        ),
        (
            Resources {
                memory_limit_in_bytes: 9 * MIB,
                memory_swap_limit_in_bytes: MIB,
                ..Default::default()
            },
            Code::InvalidArgument,
            "memory_swap_limit_in_bytes",
        ),
        (Resources { cpuset_cpus: "0-".into(), ..Default::default() }, Code::InvalidArgument, "cpuset_cpus"),
        // The kernel refuses the last of several: the first are taken back.
        (
            Resources {
                cpu_shares: 4096,
                memory_limit_in_bytes: 128 * MIB,
                cpuset_mems: "999".into(),
                ..Default::default()
            },
            Code::InvalidArgument,
            "cpuset_mems",
        ),
        (
            Resources { cpu_shares: 4096, memory_limit_in_bytes: 4096, ..Default::default() },
            Code::FailedPrecondition,
            "in use",
        ),
        (score(1001), Code::InvalidArgument, "oom_score_adj"),
        (score(i64::MIN), Code::InvalidArgument, "oom_score_adj"),
        (
            Resources { hugepage_limits: vec![huge.clone(), huge], ..Default::default() },
            Code::InvalidArgument,
            "hugepage_limits",
        ),
        (
            Resources { unified, ..Default::default() },
            if is_v2() { Code::InvalidArgument } else { Code::FailedPrecondition },
            "unified",
        ),
    ];
    for (resources, code, word) in cases {
        let refused = update(cri, &id, resources.clone()).await.err();
        let right = refused.as_ref().is_some_and(|s| s.code() == code && s.message().contains(word));
        ensure!(right, "{resources:?}: {refused:?}");
        let after = [SHARES, MEMORY, SWAP, CPUS].map(|limit| read(&cgroup, limit).unwrap_or_default());
        ensure!(after == before, "{resources:?} left {after:?}, before {before:?}");
        ensure!(limits(&cri.status(&id).await?) == first, "{resources:?} is shown");
    }
    let unknown = update(cri, "nobody", first).await.err().map(|status| status.code());
    ensure!(unknown == Some(Code::NotFound), "{unknown:?}");
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_the_sum_and_its_overhead() -> Result<()> {
    let Some(case) = Case::open("a_pod_gets_the_sum_and_its_overhead", Setup::default()).await? else {
        return Ok(());
    };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    // The overhead that a pod began with stays where a change names none.
    let mut pod = cri.pod("sum");
    pod.linux.get_or_insert_default().overhead =
        Some(Resources { cpu_shares: 24, memory_limit_in_bytes: 16 * MIB, ..Default::default() });
    let (pod_id, id) = case.sleeper(&pod).await?;
    let status = api::PodSandboxStatusRequest { pod_sandbox_id: pod_id.clone(), verbose: true };
    let status = cri.runtime.clone().pod_sandbox_status(status).await?.into_inner();
    let info: serde_json::Value = serde_json::from_str(&status.info["info"])?;
    ensure!(info["overhead"]["memoryLimitInBytes"] == 16 * MIB, "{info}");
    let request = api::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod_id.clone(),
        overhead: None,
        resources: Some(Resources {
            cpu_shares: 1000,
            cpu_quota: 80_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 112 * MIB,
            ..Default::default()
        }),
    };
    cri.runtime.clone().update_pod_sandbox_resources(request.clone()).await?;
    let parent = Cgroup::of(cri, &id).await?.parent();
    let found = [SHARES, QUOTA, MEMORY].map(|limit| read(&parent, limit).unwrap_or_default());
    let expect = if is_v2() { ["39", "80000 100000", "134217728"] } else { ["1024", "80000", "134217728"] };
    ensure!(found == expect, "{found:?}");

    // A cgroup that others use too is not one pod's to limit.
    let mut other = cri.pod("other");
    other.linux.get_or_insert_default().cgroup_parent = parent.path().to_owned();
    let other_id = cri.run_pod(&other).await?;
    let shared = cri.runtime.clone().update_pod_sandbox_resources(request.clone()).await;
    let shared = shared.err().map(|status| status.code());
    ensure!(shared == Some(Code::FailedPrecondition), "{shared:?}");
    cri.end_pod(&other_id).await?;
    cri.stop_pod(&pod_id).await?;
    let late = cri.runtime.clone().update_pod_sandbox_resources(request.clone()).await;
    ensure!(late.err().map(|status| status.code()) == Some(Code::FailedPrecondition));
    cri.remove_pod(&pod_id).await?;
    let gone = cri.runtime.clone().update_pod_sandbox_resources(request).await;
    ensure!(gone.err().map(|status| status.code()) == Some(Code::NotFound));
    case.close()
}

/// Over its memory limit a container is killed and reported as OOMKilled, and the host is unharmed.
#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_is_told_every_time() -> Result<()> {
    let Some(case) = Case::open("out_of_memory_is_told_every_time", Setup::default()).await? else {
        return Ok(());
    };
    let wanted = std::env::var("E2E_OOM_KILLS").ok().and_then(|text| text.parse().ok());
    let (kills, at_once) = (wanted.unwrap_or(500), 4);
    let cri = &case.cri;
    let pod = cri.pod("oom");
    let pod_id = cri.run_pod(&pod).await?;
    let (pod, pod_id) = (&pod, &pod_id);
    let one = |number: usize| async move {
        let mut config = container(&format!("c{number}"), BUSYBOX, &["tail", "/dev/zero"]);
        let limit = 15 * MIB;
        config.linux.get_or_insert_default().resources = Some(Resources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: limit,
            ..Default::default()
        });
        let id = cri.launch(pod_id, &config, pod).await?;
        let status = cri.exited(&id, EXIT).await?;
        ensure!((status.exit_code, status.reason.as_str()) == (137, "OOMKilled"), "{number}: {status:?}");
        cri.remove(&id).await?;
        anyhow::Ok(())
    };
    stream::iter((0..kills).map(one)).buffer_unordered(at_once).try_collect::<()>().await?;
    cri.end_pod(pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_labels_that_their_descriptors_name() -> Result<()> {
    let test = "metrics_have_the_labels_that_their_descriptors_name";
    let Some(case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let mut runtime = case.cri.runtime.clone();
    let resources = Resources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 * MIB,
        ..Default::default()
    };
    let (pod_id, id) = sleeper(&case, "metered", resources).await?;
    case.cri.start(&id).await?;
    let descriptors =
        runtime.list_metric_descriptors(api::ListMetricDescriptorsRequest {}).await?.into_inner();
    let keys: BTreeMap<String, Vec<String>> =
        descriptors.descriptors.into_iter().map(|d| (d.name, d.label_keys)).collect();
    ensure!(keys.len() >= 48 && keys.values().all(|keys| keys.len() >= 6), "{keys:?}");
    // OCI runtimes may answer before their process has become the program.
    let runs = || async {
        let sockets = case.cri.metric(&id, "container_sockets").await?;
        let threads = case.cri.metric(&id, "container_threads").await?;
        if (sockets, threads) == (Some(0), Some(1)) { Ok(()) } else { bail!("{sockets:?}, {threads:?}") }
    };
    wait::until_async("the program to run", Duration::from_secs(20), runs).await?;
    let pods = runtime.list_pod_sandbox_metrics(api::ListPodSandboxMetricsRequest {}).await?.into_inner();
    let pod =
        pods.pod_metrics.iter().find(|pod| pod.pod_sandbox_id == pod_id).context("no metrics of the pod")?;
    let of_container = pod.container_metrics.iter().find(|metrics| metrics.container_id == id);
    let of_container = &of_container.context("no metrics of the container")?.metrics;
    let mut seen = BTreeSet::new();
    for metric in pod.metrics.iter().chain(of_container) {
        let keys = keys.get(&metric.name).with_context(|| format!("{} has no descriptor", metric.name))?;
        ensure!(keys.len() == metric.label_values.len() && metric.timestamp > 0, "{keys:?} {metric:?}");
        seen.insert(metric.name.clone());
    }
    // Devices only where something was read or written.
    let optional = ["container_blkio_device_usage_total", "container_fs_reads", "container_fs_writes"];
    let missing = keys.keys().filter(|name| !seen.contains(*name));
    let missing: Vec<_> =
        missing.filter(|name| !optional.iter().any(|start| name.starts_with(start))).collect();
    ensure!(missing.is_empty(), "{missing:?}");
    let value = |name: &str| {
        let metric = of_container.iter().find(|metric| metric.name == name);
        metric.and_then(|metric| metric.value).map(|value| value.value)
    };
    for (name, expect) in [
        ("container_spec_memory_limit_bytes", 64 << 20),
        ("container_spec_cpu_quota", 20_000),
        ("container_spec_cpu_period", 100_000),
        ("container_processes", 1),
        ("container_threads", 1),
    ] {
        ensure!(value(name) == Some(expect), "{name} is {:?}", value(name));
    }
    ensure!(value("container_memory_working_set_bytes").is_some_and(|bytes| bytes > 0));
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_written_or_says_what_is_missing() -> Result<()> {
    let test = "a_checkpoint_is_written_or_says_what_is_missing";
    let Some(case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    let (pod_id, id) = sleeper(&case, "kept", Resources::default()).await?;
    let location = case.node.dirs().top().join("checkpoint.tar");
    let ask = |id: &str, location: &str| {
        let request = api::CheckpointContainerRequest {
            container_id: id.to_owned(),
            location: location.to_owned(),
            timeout: 60,
        };
        let mut runtime = cri.runtime.clone();
        async move { runtime.checkpoint_container(request).await.map(drop) }
    };
    let path = location.display().to_string();
    for (id, path, code) in [
        ("nobody", path.as_str(), Code::NotFound),
        (&id, "relative.tar", Code::InvalidArgument),
        // It does not run yet.
        (&id, &path, Code::FailedPrecondition),
    ] {
        let refused = ask(id, path).await.err().map(|status| status.code());
        ensure!(refused == Some(code), "{id} {path}: {refused:?}");
    }
    cri.start(&id).await?;
    match ask(&id, &path).await {
        Ok(()) => {
            ensure!(std::fs::metadata(&location)?.len() > 0);
            std::fs::remove_file(&location)?;
        }
        Err(status) => {
            let said = status.message().to_lowercase();
            ensure!(status.code() == Code::FailedPrecondition && said.contains("criu"), "{status:?}");
            eprintln!("SKIPPED: the archive: {}", status.message());
        }
    }
    ensure!(cri.shell(&id, "echo here").await? == "here\n", "the container does not go on");
    cri.end_pod(&pod_id).await?;
    case.close()
}

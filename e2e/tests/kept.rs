//! What a kubelet asks for again and again, answered from what is kept open or encoded: it is never old, and never in
//! the way of an end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{Cri, container};
use e2e::daemon::{Endpoint, Setup};
use e2e::image::set::{BUSYBOX, WRITER};
use e2e::wait;
use proto::cri::{self as api, ContainerState, PodSandboxState};
use tonic::Code;

const EXIT: Duration = Duration::from_secs(30);

/// The pod's statistics, as they are listed.
async fn of_pod(cri: &Cri, id: &str) -> Result<Option<api::PodSandboxStats>> {
    let filter = api::PodSandboxStatsFilter { id: id.to_owned(), ..Default::default() };
    let request = api::ListPodSandboxStatsRequest { filter: Some(filter) };
    let mut stats = cri.runtime.clone().list_pod_sandbox_stats(request).await?.into_inner().stats;
    ensure!(stats.len() < 2, "{stats:?}");
    Ok(stats.pop())
}

fn processor_time(stats: &api::ContainerStats) -> u64 {
    let usage = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds);
    usage.map_or(0, |usage| usage.value)
}

fn sent(stats: &api::PodSandboxStats) -> u64 {
    let network = stats.linux.as_ref().and_then(|linux| linux.network.as_ref());
    let sent = network.and_then(|network| network.default_interface.as_ref()?.tx_bytes);
    sent.map_or(0, |sent| sent.value)
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_are_those_of_now() -> Result<()> {
    let Some(case) = Case::open("statistics_are_those_of_now", Setup::default()).await? else {
        return Ok(());
    };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    let pod = cri.pod("watched");
    let (pod_id, first) = case.sleeper(&pod).await?;
    cri.shell(&first, "head -c 3000000 /dev/urandom >/big").await?;
    let before = of_pod(cri, &pod_id).await?.context("no statistics")?;
    let own = &before.linux.as_ref().context("nothing of Linux")?.containers[0];
    let layer = own.writable_layer.as_ref().context("no writable layer")?;
    let used = layer.used_bytes.as_ref().map_or(0, |used| used.value);
    ensure!((3_000_000..6_000_000).contains(&used) && layer.timestamp > 0, "{layer:?}");

    let work = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; nc -w 1 192.0.2.1 9 </dev/null; true";
    cri.shell(&first, work).await?;
    let after = of_pod(cri, &pod_id).await?.context("no statistics")?;
    let now = &after.linux.as_ref().context("nothing of Linux")?.containers[0];
    ensure!(processor_time(now) > processor_time(own), "{own:?} {now:?}");
    ensure!(sent(&after) > sent(&before), "{before:?} {after:?}");

    // An end is seen at once, and another container is counted in its place.
    cri.stop(&first, 0).await?;
    let second = cri.launch(&pod_id, &container("second", BUSYBOX, &["sleep", "100000"]), &pod).await?;
    let after = of_pod(cri, &pod_id).await?.context("no statistics")?;
    let running = &after.linux.as_ref().context("nothing of Linux")?.containers;
    let ids: Vec<_> = running.iter().filter_map(|stats| Some(&stats.attributes.as_ref()?.id)).collect();
    ensure!(ids == [&second], "{ids:?}");

    let namespace = case.node.dirs().netns();
    cri.stop_pod(&pod_id).await?;
    let left = std::fs::read_dir(&namespace)?.count();
    ensure!(left == 0, "{left} network namespaces are left");
    ensure!(of_pod(cri, &pod_id).await?.is_none(), "a stopped pod has statistics");
    cri.remove_pod(&pod_id).await?;
    // Every descriptor that was kept is closed: the leak diff would show it.
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_those_of_now() -> Result<()> {
    let Some(case) = Case::open("lists_are_those_of_now", Setup::default()).await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = cri.pod("listed");
    let pod_id = cri.run_pod(&pod).await?;
    let mut config = container("sleeper", BUSYBOX, &["sleep", "100000"]);
    config.labels.insert("tier".into(), "front".into());
    let id = cri.create(&pod_id, &config, &pod).await?;
    let shown = |container: Option<ContainerState>, pod: PodSandboxState| {
        let case = &case;
        async move { expect(case, container, pod).await }
    };
    let ready = PodSandboxState::SandboxReady;
    shown(Some(ContainerState::ContainerCreated), ready).await?;
    shown(Some(ContainerState::ContainerCreated), ready).await?;
    cri.start(&id).await?;
    shown(Some(ContainerState::ContainerRunning), ready).await?;
    cri.stop(&id, 0).await?;
    shown(Some(ContainerState::ContainerExited), ready).await?;
    cri.stop_pod(&pod_id).await?;
    shown(Some(ContainerState::ContainerExited), PodSandboxState::SandboxNotready).await?;
    cri.remove(&id).await?;
    shown(None, PodSandboxState::SandboxNotready).await?;
    cri.remove_pod(&pod_id).await?;
    case.close()
}

/// The one container, found by its label and state, and the one pod; the streams say the same.
async fn expect(case: &Case, state: Option<ContainerState>, pod: PodSandboxState) -> Result<()> {
    let mut runtime = case.cri.runtime.clone();
    let filter = api::ContainerFilter {
        state: state.map(|state| api::ContainerStateValue { state: state.into() }),
        label_selector: [("tier".to_owned(), "front".to_owned())].into(),
        ..Default::default()
    };
    let request = api::ListContainersRequest { filter: Some(filter.clone()) };
    let listed = runtime.list_containers(request).await?.into_inner().containers;
    let states: Vec<_> = listed.iter().map(|container| container.state()).collect();
    ensure!(states == Vec::from_iter(state), "{listed:?}, expected {state:?}");
    let request = api::ListPodSandboxRequest::default();
    let pods = runtime.list_pod_sandbox(request).await?.into_inner().items;
    ensure!(
        pods.iter().map(api::PodSandbox::state).collect::<Vec<_>>() == [pod],
        "{pods:?}, expected {pod:?}"
    );
    if case.is_berth() {
        let request = api::StreamContainersRequest { filter: Some(filter) };
        let message = runtime.stream_containers(request).await?.into_inner().message().await?;
        ensure!(message.map_or(Vec::new(), |message| message.containers) == listed, "{listed:?}");
        let request = api::StreamPodSandboxesRequest::default();
        let message = runtime.stream_pod_sandboxes(request).await?.into_inner().message().await?;
        ensure!(message.context("no message")?.pod_sandboxes == pods, "{pods:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_one_pod_and_of_all_images_is_told() -> Result<()> {
    let test = "usage_of_one_pod_and_of_all_images_is_told";
    let Some(case) = Case::open(test, Setup::of(Endpoint::Berth)).await? else { return Ok(()) };
    let cri = &case.cri;
    let (pod_id, id) = case.sleeper(&cri.pod("usage")).await?;
    let stats = async |pod_sandbox_id: &str| {
        let request = api::PodSandboxStatsRequest { pod_sandbox_id: pod_sandbox_id.to_owned() };
        cri.runtime.clone().pod_sandbox_stats(request).await.map(|answer| answer.into_inner().stats)
    };
    let pod = stats(&pod_id).await?.context("no statistics")?;
    ensure!(pod.attributes.as_ref().is_some_and(|attributes| attributes.id == pod_id), "{pod:?}");
    let linux = pod.linux.context("none of Linux")?;
    let memory = linux.memory.as_ref().and_then(|memory| memory.working_set_bytes);
    ensure!(memory.is_some_and(|bytes| bytes.value > 0), "{linux:?}");
    ensure!(linux.containers.len() == 1, "{:?}", linux.containers);
    ensure!(linux.containers[0].attributes.as_ref().is_some_and(|one| one.id == id), "{linux:?}");
    let unknown = stats("nobody").await.err().map(|status| status.code());
    ensure!(unknown == Some(Code::NotFound), "{unknown:?}");
    cri.end_pod(&pod_id).await?;

    let used = async || -> Result<u64> {
        let answer = cri.images.clone().image_fs_info(api::ImageFsInfoRequest {}).await?.into_inner();
        let usage = answer.image_filesystems.first().context("no file system")?;
        let mountpoint = usage.fs_id.as_ref().map(|id| id.mountpoint.clone()).unwrap_or_default();
        ensure!(mountpoint == case.node.dirs().root().display().to_string(), "{mountpoint}");
        ensure!(usage.inodes_used.is_some_and(|inodes| inodes.value > 0), "{usage:?}");
        Ok(usage.used_bytes.map_or(0, |bytes| bytes.value))
    };
    let before = used().await?;
    cri.pull(WRITER).await?;
    let with = used().await?;
    ensure!(with > before, "{before} bytes, with one more image {with}");
    cri.remove_image(WRITER).await?;
    wait::until_async("what the image took", EXIT, || async {
        let after = used().await?;
        ensure!(after == before, "{before} bytes before, {after} after");
        Ok(())
    })
    .await?;
    case.close()
}

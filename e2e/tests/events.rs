//! GetContainerEvents and the streamed lists.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::case::Case;
use e2e::cri::{Cri, container};
use e2e::daemon::Setup;
use e2e::image::set::BUSYBOX;
use e2e::wait;
use proto::cri::ContainerEventType::{
    ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
};
use proto::cri::{self as api, ContainerEventResponse, ContainerEventType, ContainerState};
use tonic::Streaming;

const SOON: Duration = Duration::from_secs(30);

type Events = Streaming<ContainerEventResponse>;

async fn listen(cri: &Cri) -> Result<Events> {
    Ok(cri.runtime.clone().get_container_events(api::GetEventsRequest::default()).await?.into_inner())
}

async fn next(events: &mut Events) -> Result<ContainerEventResponse> {
    let event = tokio::time::timeout(SOON, events.message()).await.context("no event came")??;
    event.context("the stream ended")
}

/// The next events, as ids and types.
async fn heard(events: &mut Events, count: usize) -> Result<Vec<(String, ContainerEventType)>> {
    let mut heard = Vec::new();
    for _ in 0..count {
        let event = next(events).await?;
        heard.push((event.container_id.clone(), event.container_event_type()));
    }
    Ok(heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stage_of_a_life_is_told_once_and_in_order() -> Result<()> {
    let test = "every_stage_of_a_life_is_told_once_and_in_order";
    let Some(case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    // What came before was heard by nobody, and comes first.
    let mut events = listen(cri).await?;
    let pod = cri.pod("told");
    let (pod_id, id) = case.sleeper(&pod).await?;
    let mut event = next(&mut events).await?;
    while event.container_id != pod_id {
        event = next(&mut events).await?;
    }
    ensure!(event.container_event_type() == ContainerCreatedEvent, "{event:?}");
    let expect = [
        (pod_id.clone(), ContainerStartedEvent),
        (id.clone(), ContainerCreatedEvent),
        (id.clone(), ContainerStartedEvent),
    ];
    ensure!(heard(&mut events, 3).await? == expect);
    cri.stop(&id, 0).await?;
    let stopped = next(&mut events).await?;
    ensure!(stopped.container_event_type() == ContainerStoppedEvent && stopped.created_at > 0, "{stopped:?}");
    let status = stopped.pod_sandbox_status.context("no status of the pod")?;
    ensure!(status.metadata == pod.metadata && status.network.is_some(), "{status:?}");
    let [status] = stopped.containers_statuses.as_slice() else { bail!("{:?}", stopped.containers_statuses) };
    ensure!(status.state() == ContainerState::ContainerExited && status.exit_code == 137, "{status:?}");

    // One that ends at once, one that is never started.
    let quick = cri.launch(&pod_id, &container("quick", BUSYBOX, &["true"]), &pod).await?;
    let expect = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent];
    ensure!(heard(&mut events, 3).await? == expect.map(|kind| (quick.clone(), kind)));
    let never = cri.create(&pod_id, &container("never", BUSYBOX, &["true"]), &pod).await?;
    cri.remove(&never).await?;
    let expect = [ContainerCreatedEvent, ContainerStoppedEvent, ContainerDeletedEvent];
    ensure!(heard(&mut events, 3).await? == expect.map(|kind| (never.clone(), kind)));

    cri.end_pod(&pod_id).await?;
    ensure!(heard(&mut events, 1).await? == [(pod_id.clone(), ContainerStoppedEvent)]);
    let deleted: BTreeSet<_> =
        heard(&mut events, 2).await?.into_iter().map(|(id, kind)| (id, kind as i32)).collect();
    let expect: BTreeSet<_> = [id, quick].map(|id| (id, ContainerDeletedEvent as i32)).into();
    ensure!(deleted == expect, "{deleted:?}");
    let last = next(&mut events).await?;
    ensure!(last.container_id == pod_id && last.container_event_type() == ContainerDeletedEvent, "{last:?}");
    ensure!(last.pod_sandbox_status.is_some() && last.containers_statuses.is_empty(), "{last:?}");
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_costs_nobody_anything() -> Result<()> {
    let test = "a_reader_that_does_not_read_costs_nobody_anything";
    let Some(case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    let silent = listen(&case.node.cri().await?).await?;
    let mut events = listen(cri).await?;
    let pod = cri.pod("busy");
    let pod_id = cri.run_pod(&pod).await?;
    for number in 0..30 {
        let id = cri.create(&pod_id, &container(&format!("c{number}"), BUSYBOX, &["true"]), &pod).await?;
        cri.remove(&id).await?;
        loop {
            let event = next(&mut events).await?;
            if event.container_id == id && event.container_event_type() == ContainerDeletedEvent {
                break;
            }
        }
    }
    cri.end_pod(&pod_id).await?;
    // Whether it was cut off by now hangs on how much the sockets hold.
    drop(silent);
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_the_daemon_was_gone_is_told() -> Result<()> {
    let test = "what_happened_while_the_daemon_was_gone_is_told";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let pod = case.cri.pod("absent");
    let pod_id = case.cri.run_pod(&pod).await?;
    let gate = case.node.dirs().top().join("gate");
    std::fs::create_dir(&gate)?;
    let mut config =
        container("leaver", BUSYBOX, &["sh", "-c", "until [ -e /gate/go ]; do sleep 0.02; done; exit 3"]);
    config.mounts = vec![api::Mount {
        host_path: gate.display().to_string(),
        container_path: "/gate".into(),
        ..Default::default()
    }];
    let id = case.cri.launch(&pod_id, &config, &pod).await?;
    let pid = pid(&case.cri, &id).await?;
    case.node.kill_daemon()?;
    std::fs::write(gate.join("go"), "")?;
    wait::until("the end of the process", SOON, || {
        ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        Ok(())
    })?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    let mut events = listen(&case.cri).await?;
    let event = next(&mut events).await?;
    ensure!(event.container_id == id && event.container_event_type() == ContainerStoppedEvent, "{event:?}");
    ensure!(event.containers_statuses[0].exit_code == 3, "{event:?}");
    // A reader does not keep a daemon from stopping.
    let stopping = Instant::now();
    case.node.stop_daemon()?;
    ensure!(
        stopping.elapsed() < wait::scaled(Duration::from_secs(5)),
        "the daemon took {:?} to stop",
        stopping.elapsed()
    );
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    case.cri.end_pod(&pod_id).await?;
    std::fs::remove_dir_all(gate)?;
    case.close()
}

async fn pid(cri: &Cri, id: &str) -> Result<i64> {
    let request = api::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let info = cri.runtime.clone().container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"])?;
    info["pid"].as_i64().context("no process id")
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_say_what_lists_say() -> Result<()> {
    let Some(case) = Case::open("streams_say_what_lists_say", Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let mut pod = cri.pod(name);
        // Large items: more than one message, each far below the limit.
        pod.annotations.insert("large".into(), "x".repeat(200_000));
        pods.push(case.sleeper(&pod).await?);
    }
    let (mut runtime, mut images) = (cri.runtime.clone(), cri.images.clone());

    let whole = runtime.list_pod_sandbox(api::ListPodSandboxRequest::default()).await?.into_inner().items;
    let mut stream =
        runtime.stream_pod_sandboxes(api::StreamPodSandboxesRequest::default()).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        ensure!(!message.pod_sandboxes.is_empty());
        messages.push(message.pod_sandboxes);
    }
    ensure!(messages.len() == 2 && messages.concat() == whole, "{} messages", messages.len());

    let filter = api::ContainerFilter { pod_sandbox_id: pods[0].0.clone(), ..Default::default() };
    let request = api::StreamContainersRequest { filter: Some(filter) };
    let mut stream = runtime.stream_containers(request).await?.into_inner();
    let only = stream.message().await?.context("no message")?.containers;
    ensure!(only.len() == 1 && only[0].id == pods[0].1 && stream.message().await?.is_none(), "{only:?}");

    let filter = api::ContainerStatsFilter { id: pods[1].1.clone(), ..Default::default() };
    let request = api::StreamContainerStatsRequest { filter: Some(filter) };
    let stats = runtime.stream_container_stats(request).await?.into_inner().message().await?;
    let stats = stats.context("no message")?.container_stats;
    ensure!(stats.len() == 1 && stats[0].attributes.as_ref().is_some_and(|a| a.id == pods[1].1), "{stats:?}");

    let filter = api::PodSandboxStatsFilter { id: pods[1].0[..20].to_owned(), ..Default::default() };
    let request = api::StreamPodSandboxStatsRequest { filter: Some(filter) };
    let stats = runtime.stream_pod_sandbox_stats(request).await?.into_inner().message().await?;
    let stats = stats.context("no message")?.pod_sandbox_stats;
    ensure!(stats.len() == 1 && stats[0].attributes.as_ref().is_some_and(|a| a.id == pods[1].0), "{stats:?}");

    let mut stream = runtime
        .stream_pod_sandbox_metrics(api::StreamPodSandboxMetricsRequest::default())
        .await?
        .into_inner();
    let metrics = stream.message().await?.context("no message")?.pod_sandbox_metrics;
    ensure!(metrics.len() == 2 && metrics.iter().all(|pod| pod.container_metrics.len() == 1), "{metrics:?}");

    let whole = images.list_images(api::ListImagesRequest::default()).await?.into_inner().images;
    let mut stream = images.stream_images(api::StreamImagesRequest::default()).await?.into_inner();
    ensure!(stream.message().await?.context("no message")?.images == whole);

    // Nothing that passes: an end without a message.
    let filter = api::PodSandboxFilter { id: "0000".into(), ..Default::default() };
    let request = api::StreamPodSandboxesRequest { filter: Some(filter) };
    ensure!(runtime.stream_pod_sandboxes(request).await?.into_inner().message().await?.is_none());
    for (pod, _) in pods {
        cri.end_pod(&pod).await?;
    }
    case.close()
}

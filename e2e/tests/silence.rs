//! Monitors that die, or are silent when the daemon comes or calls, and a daemon that is to stop while calls go on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{container, with_namespaces};
use e2e::daemon::Setup;
use e2e::image::set::BUSYBOX;
use e2e::wait;
use proto::cri::{self as api, ContainerState};
use rustix::process::{Pid, Signal, kill_process};

/// Longest restart of a daemon that finds a monitor which does not answer.
const WEDGED_RESTART: Duration = Duration::from_secs(20);
/// Longest removal of a pod whose monitor does not answer.
const WEDGED_REMOVAL: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(30);

/// Whether there is a daemon when a monitor dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    Serves,
    IsDown,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_monitor_is_noticed() -> Result<()> {
    a_monitor_dies("a_killed_monitor_is_noticed", Daemon::Serves).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_monitor_is_found_at_the_restart() -> Result<()> {
    a_monitor_dies("a_killed_monitor_is_found_at_the_restart", Daemon::IsDown).await
}

async fn a_monitor_dies(test: &str, daemon: Daemon) -> Result<()> {
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let own = api::NamespaceOption { pid: api::NamespaceMode::Container.into(), ..Default::default() };
    for (name, namespaces) in [("own", own), ("shared", api::NamespaceOption::default())] {
        let pod = with_namespaces(case.cri.pod(name), namespaces);
        let (pod_id, sleeper) = case.sleeper(&pod).await?;
        let job = container("job", BUSYBOX, &["sh", "-c", "exit 7"]);
        let job = case.cri.launch(&pod_id, &job, &pod).await?;
        case.cri.exited(&job, SOON).await?;
        let monitor = case.node.ancestry().monitor(&pod_id)?;
        if daemon == Daemon::IsDown {
            case.node.kill_daemon()?;
        }
        let killed = std::time::Instant::now();
        signal(monitor, Signal::KILL)?;
        if daemon == Daemon::IsDown {
            case.restart_daemon().await?;
        }
        case.expect_dead(&pod_id, &sleeper).await?;
        eprintln!("{daemon:?}, {name}: reported {:?} after the monitor's death", killed.elapsed());
        ensure!(case.cri.status(&job).await?.exit_code == 7);
        case.cri.end_pod(&pod_id).await?;
        case.settle()?;
    }
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wedged_monitor_harms_its_own_pod_only() -> Result<()> {
    let test = "a_wedged_monitor_harms_its_own_pod_only";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let (good, good_server) = case.sleeper(&case.cri.pod("good")).await?;
    for daemon in [Daemon::IsDown, Daemon::Serves] {
        let (bad, bad_server) = case.sleeper(&case.cri.pod("bad")).await?;
        signal(case.node.ancestry().monitor(&bad)?, Signal::STOP)?;
        ensure!(case.cri.shell(&good_server, "echo here").await? == "here\n");
        let begun = std::time::Instant::now();
        if daemon == Daemon::IsDown {
            case.node.kill_daemon()?;
            case.restart_daemon().await?;
            ensure!(begun.elapsed() < wait::scaled(WEDGED_RESTART), "the restart took {:?}", begun.elapsed());
            case.expect_dead(&bad, &bad_server).await?;
        }
        case.cri.end_pod(&bad).await?;
        eprintln!("{daemon:?}: gone after {:?}", begun.elapsed());
        ensure!(begun.elapsed() < wait::scaled(WEDGED_REMOVAL), "the removal took {:?}", begun.elapsed());
        ensure!(case.cri.shell(&good_server, "echo here").await? == "here\n");
    }
    case.cri.end_pod(&good).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_is_slow_at_a_restart_keeps_its_pod() -> Result<()> {
    let test = "a_monitor_that_is_slow_at_a_restart_keeps_its_pod";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let pod = case.cri.pod("slow");
    let (pod_id, server) = case.sleeper(&pod).await?;
    let monitor = case.node.ancestry().monitor(&pod_id)?;
    case.node.kill_daemon()?;
    signal(monitor, Signal::STOP)?;
    case.restart_daemon().await?;
    let status = case.cri.status(&server).await?;
    ensure!(status.state() == ContainerState::ContainerRunning, "{status:?}");
    signal(monitor, Signal::CONT)?;
    wait::until_async("an answer from the container", SOON, || async {
        let said = case.cri.shell(&server, "echo here").await?;
        ensure!(said == "here\n", "{said:?}");
        Ok(())
    })
    .await?;
    let job = container("job", BUSYBOX, &["sh", "-c", "exit 5"]);
    let job = case.cri.launch(&pod_id, &job, &pod).await?;
    ensure!(case.cri.exited(&job, SOON).await?.exit_code == 5);
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_of_the_daemon_does_not_wait_for_calls_without_end() -> Result<()> {
    let test = "a_stop_of_the_daemon_does_not_wait_for_calls_without_end";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let (pod_id, server) = case.sleeper(&case.cri.pod("busy")).await?;
    let cri = case.node.cri().await?;
    let (id, line) = (server.clone(), "echo $$ > /tmp/began; exec sleep 1000");
    let call = tokio::spawn(async move { cri.exec(&id, &["sh", "-c", line], 0).await.is_err() });
    wait::until_async("the command", SOON, || async {
        ensure!(!case.cri.shell(&server, "cat /tmp/began").await?.is_empty());
        Ok(())
    })
    .await?;
    case.node.stop_daemon()?;
    ensure!(call.await?, "the call was answered");
    case.restart_daemon().await?;
    ensure!(case.cri.shell(&server, "echo here").await? == "here\n");
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    Ok(kill_process(Pid::from_raw(pid).context("no process")?, signal)?)
}

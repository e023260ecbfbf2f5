//! The daemon killed, and held, while its containers go on.
//!
//! `E2E_HOLD_SECONDS` shortens the 60 s for development.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::case::Case;
use e2e::cri::container;
use e2e::daemon::Setup;
use e2e::image::set::{BUSYBOX, WRITER};
use e2e::{log, wait};
use proto::cri::{ContainerState, PodSandboxState};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Lines per second that the writer writes.
const RATE: u64 = 10_000;
/// Longest pause that a writer may see.
const LONGEST_GAP: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(30);

/// What happens to the daemon in between.
#[derive(Clone, Copy, Debug)]
enum Absence {
    /// SIGKILL, and a new daemon at the end.
    Killed,
    /// SIGSTOP, and SIGCONT at the end.
    Held,
}

fn hold() -> Duration {
    let seconds = std::env::var("E2E_HOLD_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

/// How long the machine itself lets a process wait: on each processor, a thread that wants to run each millisecond notes
/// when it could not. On a shared machine a writer cannot do better than that.
struct Pauses {
    longest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Pauses {
    fn watch() -> Self {
        let pauses = Self { longest: Arc::default(), over: Arc::default() };
        let allowed = sched_getaffinity(None).unwrap_or_default();
        for processor in (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor)) {
            let (longest, over) = (pauses.longest.clone(), pauses.over.clone());
            std::thread::spawn(move || {
                let mut own = CpuSet::new();
                own.set(processor);
                let _anywhere = sched_setaffinity(None, &own);
                let mut last = Instant::now();
                while !over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                    let paused = u64::try_from(last.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    longest.fetch_max(paused, Ordering::Relaxed);
                    last = Instant::now();
                }
            });
        }
        pauses
    }

    fn end(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        Duration::from_nanos(self.longest.load(Ordering::Relaxed))
    }
}

/// Lets the node's containers go before other work of the machine, so that a pause is the runtime's doing.
fn favour(case: &Case) -> Result<()> {
    let name = e2e::cgroup::parent(&case.node.dirs().id());
    let shares = [("/sys/fs/cgroup/cpu", "cpu.shares", "262144"), ("/sys/fs/cgroup", "cpu.weight", "10000")];
    for (hierarchy, file, most) in shares {
        let path = std::path::Path::new(hierarchy).join(&name).join(file);
        if path.exists() {
            std::fs::write(path, most)?;
        }
    }
    Ok(())
}

async fn check(test: &str, absence: Absence) -> Result<()> {
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    case.cri.pull(WRITER).await?;
    case.accept_present_state()?;
    let pod = case.cri.pod("restart");
    let pod_id = case.cri.run_pod(&pod).await?;
    let rate = RATE.to_string();
    favour(&case)?;
    let pauses = Pauses::watch();
    let writer = case.cri.launch(&pod_id, &container("writer", WRITER, &["/writer", &rate]), &pod).await?;
    // Exits in the middle of the absence.
    let half = (hold() / 2).as_secs_f32();
    let line = format!("sleep {half}; exit 3");
    let leaver = case.cri.launch(&pod_id, &container("leaver", BUSYBOX, &["sh", "-c", &line]), &pod).await?;

    match absence {
        Absence::Killed => {
            case.node.kill_daemon()?;
            tokio::time::sleep(hold()).await;
            case.node.start_daemon()?;
            case.cri = case.node.cri().await?;
        }
        Absence::Held => {
            case.node.daemon()?.freeze()?;
            tokio::time::sleep(hold()).await;
            case.node.daemon()?.resume()?;
        }
    }
    let cri = &case.cri;
    ensure!(cri.pod_status(&pod_id).await?.state() == PodSandboxState::SandboxReady);
    ensure!(cri.status(&writer).await?.state() == ContainerState::ContainerRunning);
    let status = cri.exited(&leaver, SOON).await?;
    ensure!(status.exit_code == 3, "{status:?}");
    let ran = Duration::from_nanos(u64::try_from(status.finished_at - status.started_at)?).as_secs_f32();
    let latest = half + wait::scaled(Duration::from_secs(10)).as_secs_f32();
    ensure!((half..latest).contains(&ran), "it is said to have run for {ran} s, it was {half} s");

    let path = cri.log_path("restart", "writer");
    let length = std::fs::metadata(&path)?.len();
    wait::until("lines after the absence", SOON, || {
        ensure!(std::fs::metadata(&path)?.len() > length);
        Ok(())
    })?;
    cri.stop(&writer, 1).await?;
    let written = log::check_written(&log::read(&path)?)?;
    let least = RATE * hold().as_secs();
    ensure!(written.lines >= least, "{} lines, expected {least} or more", written.lines);
    let (gap, machine) = (Duration::from_nanos(written.longest_gap), pauses.end());
    let handler = &case.node.setup().default_handler;
    eprintln!(
        "{handler}, {absence:?}: {} lines, longest gap {gap:?}, the machine's {machine:?}",
        written.lines
    );
    ensure!(gap <= LONGEST_GAP + machine, "the writer stalled for {gap:?}, the machine for {machine:?}");

    let late = cri.launch(&pod_id, &container("late", BUSYBOX, &["sh", "-c", "exit 5"]), &pod).await?;
    ensure!(cri.exited(&late, SOON).await?.exit_code == 5);
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_a_killed_daemon() -> Result<()> {
    check("containers_outlive_a_killed_daemon", Absence::Killed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_do_not_notice_a_held_daemon() -> Result<()> {
    check("containers_do_not_notice_a_held_daemon", Absence::Held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_in_every_state_are_found_again() -> Result<()> {
    let Some(mut case) = Case::open("containers_in_every_state_are_found_again", Setup::default()).await?
    else {
        return Ok(());
    };
    let pod = case.cri.pod("again");
    let (pod_id, sleeper) = case.sleeper(&pod).await?;
    let done = case.cri.launch(&pod_id, &container("done", BUSYBOX, &["sh", "-c", "exit 9"]), &pod).await?;
    case.cri.exited(&done, SOON).await?;
    let created = case.cri.create(&pod_id, &container("created", BUSYBOX, &["sleep", "99"]), &pod).await?;
    case.node.kill_daemon()?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    let cri = &case.cri;
    ensure!(cri.status(&sleeper).await?.state() == ContainerState::ContainerRunning);
    ensure!(cri.status(&done).await?.exit_code == 9);
    ensure!(cri.status(&created).await?.state() == ContainerState::ContainerCreated);
    cri.start(&created).await?;
    ensure!(cri.shell(&sleeper, "echo here").await? == "here\n");
    cri.stop(&sleeper, 0).await?;
    ensure!(cri.status(&sleeper).await?.exit_code == 137);
    cri.end_pod(&pod_id).await?;
    case.close()
}

/// A pod that was being removed, or a daemon that dies between two calls, leaves nothing after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_at_any_call_leaves_nothing() -> Result<()> {
    let test = "a_daemon_killed_at_any_call_leaves_nothing";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    for delay in [0, 3, 8, 15, 25, 40, 60, 90, 130, 200] {
        let cri = case.cri.clone();
        let pod = cri.pod(&format!("cut-{delay}"));
        let life = tokio::spawn({
            let (cri, pod) = (cri.clone(), pod.clone());
            async move {
                let pod_id = cri.run_pod(&pod).await?;
                cri.launch(&pod_id, &container("c", BUSYBOX, &["sleep", "1000"]), &pod).await?;
                cri.end_pod(&pod_id).await
            }
        });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        case.node.kill_daemon()?;
        // Whatever the caller saw; the kubelet would now ask again.
        let _ = life.await?;
        case.node.start_daemon()?;
        case.cri = case.node.cri().await?;
        let cri = &case.cri;
        let pods = cri.runtime.clone().list_pod_sandbox(proto::cri::ListPodSandboxRequest::default()).await?;
        for pod in pods.into_inner().items {
            cri.end_pod(&pod.id).await?;
        }
        case.settle().map_err(|error| error.context(format!("killed after {delay} ms")))?;
    }
    case.close()
}

/// A damaged record takes nothing from the pod's containers: they are listed, and their ends are told.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_quarantined_pods_container_is_told() -> Result<()> {
    let test = "the_end_of_a_quarantined_pods_container_is_told";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let signal = tempfile::tempdir()?;
    let pod = case.cri.pod("quarantined");
    let pod_id = case.cri.run_pod(&pod).await?;
    let mut config =
        container("job", BUSYBOX, &["sh", "-c", "until [ -e /signal/go ]; do sleep 0.01; done; exit 7"]);
    config.mounts = vec![proto::cri::Mount {
        host_path: signal.path().display().to_string(),
        container_path: "/signal".into(),
        ..Default::default()
    }];
    let job = case.cri.launch(&pod_id, &config, &pod).await?;
    let record = case.node.dirs().root().join("pods").join(&pod_id).join("record.json");
    case.node.kill_daemon()?;
    let whole = std::fs::read(&record)?;
    std::fs::write(&record, &whole[..whole.len() / 2])?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    ensure!(case.cri.pod_status(&pod_id).await.is_err());
    ensure!(case.cri.status(&job).await?.state() == ContainerState::ContainerRunning);
    std::fs::write(signal.path().join("go"), "")?;
    ensure!(case.cri.exited(&job, SOON).await?.exit_code == 7);
    case.node.kill_daemon()?;
    std::fs::write(&record, whole)?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    ensure!(case.cri.status(&job).await?.exit_code == 7);
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

//! Deaths at any instant: of the daemon, of a monitor, of the node; damaged records; clients that hang up.
//!
//! `E2E_CRASH_ROUNDS` and `E2E_CRASH_SEED` choose how many random kills there are and which.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::case::Case;
use e2e::cri::container;
use e2e::daemon::Setup;
use e2e::image::set::BUSYBOX;
use e2e::life::{Life, Puller, STEPS, Step};
use proto::cri::{self as api, ContainerState, PodSandboxState};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

/// Pods whose lives go on at the same time.
const LIVES: usize = 3;
/// Random kills, unless the environment says otherwise.
const ROUNDS: u64 = 40;
/// Longest time from the beginning of a step to the kill, in microseconds.
const LATEST_KILL: u64 = 80_000;

const SOON: Duration = Duration::from_secs(30);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Numbers that look random and can be had again (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Everything of one round that outlives the daemon.
struct Round {
    lives: Vec<Life>,
    puller: Puller,
}

/// A parent of cgroups that is a kubelet's: pods neither make nor remove it.
fn given_parent(case: &Case) -> String {
    e2e::cgroup::in_parent(&case.node.dirs().id(), "given")
}

async fn make_given_parent(case: &mut Case) -> Result<()> {
    let mut pod = case.cri.pod("given");
    pod.linux.get_or_insert_default().cgroup_parent = given_parent(case);
    let (pod_id, _) = case.sleeper(&pod).await?;
    case.cri.end_pod(&pod_id).await?;
    case.accept_present_state()
}

/// Lives and pulls go on until the daemon is killed, some time after the first life begins `step`.
async fn until_killed(case: &mut Case, step: Step, dice: &mut Dice) -> Result<Round> {
    let killed = Arc::new(AtomicBool::new(false));
    let (begins, mut seen) = watch::channel(Step::RunPod);
    let mut lives = Vec::new();
    for number in 0..LIVES {
        let (cri, killed) = (case.cri.clone(), killed.clone());
        let offset = Duration::from_micros(if number == 0 { 0 } else { dice.below(300_000) });
        let told = if number == 0 { begins.clone() } else { watch::Sender::new(Step::RunPod) };
        let mut pod = cri.pod(&format!("life-{number}"));
        if number == 1 {
            pod.linux.get_or_insert_default().cgroup_parent = given_parent(case);
        }
        let mut life = Life::new(pod);
        lives.push(tokio::spawn(async move {
            tokio::time::sleep(offset).await;
            match life.run(&cri, &told).await {
                Err(error) if !killed.load(Ordering::SeqCst) => Err(error),
                _ended => Ok(life),
            }
        }));
    }
    drop(begins);
    let puller = tokio::spawn({
        let (cri, killed) = (case.cri.clone(), killed.clone());
        async move {
            let mut puller = Puller::default();
            match puller.run(&cri, &killed).await {
                Err(error) if !killed.load(Ordering::SeqCst) => Err(error),
                _ended => Ok(puller),
            }
        }
    });
    // Fails where the first life failed, which is told below.
    let _reached = seen.wait_for(|now| *now >= step).await.map(drop);
    let delay = dice.below(LATEST_KILL);
    tokio::time::sleep(Duration::from_micros(delay)).await;
    killed.store(true, Ordering::SeqCst);
    case.node.kill_daemon()?;
    let mut round = Round { lives: Vec::new(), puller: puller.await?? };
    for life in lives {
        round.lives.push(life.await??);
    }
    Ok(round)
}

async fn random_kill(case: &mut Case, seed: u64) -> Result<()> {
    let mut dice = Dice(seed);
    let step = STEPS[usize::try_from(dice.below(STEPS.len() as u64))?];
    let mut round = until_killed(case, step, &mut dice).await?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    let cri = &case.cri;
    for life in &round.lives {
        life.check(cri).await.context("after the restart")?;
    }
    let told = watch::Sender::new(Step::RunPod);
    let finishing = round.lives.iter_mut().map(|life| async {
        life.run(cri, &told).await.context("asked again")?;
        life.check(cri).await
    });
    futures_util::future::try_join_all(finishing).await?;
    round.puller.finish(cri).await?;
    case.settle()
}

#[tokio::test(flavor = "multi_thread")]
async fn random_kills_of_the_daemon_lose_nothing() -> Result<()> {
    let test = "random_kills_of_the_daemon_lose_nothing";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = number("E2E_CRASH_SEED").unwrap_or(now.as_secs());
    let rounds = number("E2E_CRASH_ROUNDS").unwrap_or(ROUNDS);
    let started = std::time::Instant::now();
    make_given_parent(&mut case).await?;
    for round in 0..rounds {
        let seed = seed.wrapping_add(round);
        if let Err(error) = random_kill(&mut case, seed).await {
            bail!("E2E_CRASH_SEED={seed} E2E_CRASH_ROUNDS=1 is where it failed (round {round}): {error:?}");
        }
    }
    eprintln!("{rounds} kills from seed {seed} on, {:?}", started.elapsed());
    case.close()
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    Ok(kill_process(Pid::from_raw(pid).context("no process")?, signal)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_killed_at_any_call_leaves_nothing() -> Result<()> {
    let test = "a_monitor_killed_at_any_call_leaves_nothing";
    let Some(case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    for delay in [0, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150] {
        let pod = cri.pod("cut");
        let pod_id = cri.run_pod(&pod).await?;
        let monitor = case.node.ancestry().monitor(&pod_id)?;
        let config = container("server", BUSYBOX, &["sleep", "100000"]);
        let (asking, id, config_of) = (cri.clone(), pod_id.clone(), pod.clone());
        let life = tokio::spawn(async move {
            let server = asking.launch(&id, &config, &config_of).await?;
            asking.exec(&server, &["sleep", "77"], 5).await
        });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        signal(monitor, Signal::KILL)?;
        // Whatever it was told.
        let _ended = life.await?;
        cri.end_pod(&pod_id).await?;
        case.settle().with_context(|| format!("killed after {delay} ms"))?;
    }
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_ends_pods_and_keeps_their_records() -> Result<()> {
    let test = "a_reboot_ends_pods_and_keeps_their_records";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    case.node.kill_daemon()?;
    case.node.own_boot_id()?;
    case.restart_daemon().await?;
    case.accept_present_state()?;
    let mut pod = case.cri.pod("reboot");
    pod.port_mappings = vec![api::PortMapping { container_port: 80, host_port: 18081, ..Default::default() }];
    let (pod_id, sleeper) = case.sleeper(&pod).await?;
    let job = container("job", BUSYBOX, &["sh", "-c", "exit 7"]);
    let job = case.cri.launch(&pod_id, &job, &pod).await?;
    case.cri.exited(&job, SOON).await?;
    let created = case.cri.create(&pod_id, &container("created", BUSYBOX, &["true"]), &pod).await?;
    case.node.kill_daemon()?;
    case.node.reboot()?;
    case.restart_daemon().await?;
    case.expect_dead(&pod_id, &sleeper).await?;
    ensure!(case.cri.status(&created).await?.state() == ContainerState::ContainerExited);
    let status = case.cri.status(&job).await?;
    ensure!((status.exit_code, status.reason.as_str()) == (7, "Error"), "{status:?}");
    // Its address and its port are free before anybody removes it.
    let mut again = pod.clone();
    again.metadata.get_or_insert_default().attempt = 1;
    let (second, _) = case.sleeper(&again).await?;
    case.cri.end_pod(&second).await?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

type Damage = fn(&[u8]) -> Vec<u8>;

/// What may happen to a record's bytes.
const DAMAGES: [(&str, Damage); 3] = [
    ("a flipped bit", |bytes| bytes.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 99)).collect()),
    ("half", |bytes| bytes[..bytes.len() / 2].to_vec()),
    ("empty", |_| Vec::new()),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_costs_nobody_anything() -> Result<()> {
    let test = "a_damaged_record_costs_nobody_anything";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let (bad, bad_server) = case.sleeper(&case.cri.pod("bad")).await?;
    let (good, good_server) = case.sleeper(&case.cri.pod("good")).await?;
    let root = case.node.dirs().root();
    for of in [format!("pods/{bad}"), format!("containers/{bad_server}")] {
        let path = root.join(&of).join("record.json");
        for (damage, damaged) in DAMAGES {
            let what = format!("{damage} of {of}");
            case.node.kill_daemon()?;
            let whole = std::fs::read(&path)?;
            std::fs::write(&path, damaged(&whole))?;
            case.restart_daemon().await?;
            ensure!(case.cri.pod_status(&bad).await.is_err() == of.starts_with("pods"), "{what}");
            ensure!(case.cri.status(&bad_server).await.is_err() == of.starts_with("containers"), "{what}");
            ensure!(case.node.ancestry().of_pod(&bad)?.len() == 1, "{what}: its container is gone");
            ensure!(case.cri.shell(&good_server, "echo here").await? == "here\n", "{what}");
            let (more, _) = case.sleeper(&case.cri.pod("more")).await?;
            case.cri.end_pod(&more).await?;
            case.node.kill_daemon()?;
            std::fs::write(&path, whole)?;
            case.restart_daemon().await?;
            ensure!(case.cri.shell(&bad_server, "echo here").await? == "here\n", "{what}");
            let ready = case.cri.pod_status(&bad).await?.state() == PodSandboxState::SandboxReady;
            ensure!(ready, "{what}: the pod is not ready once its record is whole");
        }
    }
    case.cri.end_pod(&bad).await?;
    case.cri.end_pod(&good).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_and_asks_again_gets_one_object() -> Result<()> {
    let test = "a_client_that_hangs_up_and_asks_again_gets_one_object";
    let Some(case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let cri = &case.cri;
    for delay in [0, 1, 2, 4, 8, 15, 25, 40, 60].map(Duration::from_millis) {
        let pod = cri.pod("hang-up");
        let _hung_up = tokio::time::timeout(delay, cri.run_pod(&pod)).await;
        let pod_id = cri.run_pod(&pod).await?;
        ensure!(cri.run_pod(&pod).await? == pod_id);
        ensure!(cri.pods_named("hang-up").await?.len() == 1, "{delay:?}");
        let config = container("server", BUSYBOX, &["sleep", "100000"]);
        let _hung_up = tokio::time::timeout(delay, cri.create(&pod_id, &config, &pod)).await;
        let id = cri.create(&pod_id, &config, &pod).await?;
        ensure!(cri.create(&pod_id, &config, &pod).await? == id);
        let all = cri.runtime.clone().list_containers(api::ListContainersRequest::default()).await?;
        ensure!(all.into_inner().containers.len() == 1, "{delay:?}");
        cri.start(&id).await?;
        let _hung_up = tokio::time::timeout(delay, cri.exec(&id, &["sleep", "77"], 1)).await;
        let _hung_up = tokio::time::timeout(delay, cri.stop_pod(&pod_id)).await;
        let _hung_up = tokio::time::timeout(delay, cri.remove_pod(&pod_id)).await;
        cri.end_pod(&pod_id).await?;
        case.settle().with_context(|| format!("hung up after {delay:?}"))?;
    }
    case.close()
}

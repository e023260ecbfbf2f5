//! Deaths at any instant: of the daemon, of a monitor, of the node; damaged records; clients that hang up.
//!
//! `E2E_CRASH_ROUNDS` and `E2E_CRASH_SEED` choose how many random kills there are and which.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::case::Case;
use e2e::cri::Cri;
use e2e::daemon::Setup;
use e2e::image::set::FORMATS;
use e2e::life::{Life, STEPS, Step};
use tokio::sync::watch;

/// Pods whose lives go on at the same time.
const LIVES: usize = 3;
/// Random kills, unless the environment says otherwise.
const ROUNDS: u64 = 40;
/// Longest time from the beginning of a step to the kill, in microseconds.
const LATEST_KILL: u64 = 80_000;

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

/// An image that is pulled and removed again and again.
#[derive(Debug, Default)]
struct Puller {
    pulls: u64,
    removals: u64,
}

impl Puller {
    /// Goes on until a call fails or `enough` says so.
    async fn run(&mut self, cri: &Cri, enough: &AtomicBool) -> Result<()> {
        while !enough.load(Ordering::Relaxed) || self.pulls > self.removals {
            if self.pulls == self.removals {
                cri.pull(FORMATS[0]).await.context("pull")?;
                self.pulls += 1;
            }
            cri.remove_image(FORMATS[0]).await.context("remove the image")?;
            self.removals += 1;
        }
        Ok(())
    }

    /// A pull that was answered and not asked to be undone is shown, and the other way round, at rest.
    async fn finish(&mut self, cri: &Cri) -> Result<()> {
        cri.pull(FORMATS[0]).await.context("pull again")?;
        ensure!(cri.image(FORMATS[0]).await?.is_some(), "a pulled image is not shown");
        cri.remove_image(FORMATS[0]).await?;
        ensure!(cri.image(FORMATS[0]).await?.is_none(), "a removed image is shown");
        Ok(())
    }
}

/// Everything of one round that outlives the daemon.
struct Round {
    lives: Vec<Life>,
    puller: Puller,
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
        let mut life = Life::new(cri.pod(&format!("life-{number}")));
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
    for round in 0..rounds {
        let seed = seed.wrapping_add(round);
        if let Err(error) = random_kill(&mut case, seed).await {
            bail!("E2E_CRASH_SEED={seed} E2E_CRASH_ROUNDS=1 is where it failed (round {round}): {error:?}");
        }
    }
    eprintln!("{rounds} kills from seed {seed} on, {:?}", started.elapsed());
    case.close()
}

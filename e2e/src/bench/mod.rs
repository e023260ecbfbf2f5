//! Berth beside containerd, measured in one run: interleaved, bounded, and with nothing left behind.
//!
//! It owns what is measured and how it is shown. It drives the daemons through the typed CRI client and knows
//! nothing of how they work.

mod budget;
mod by_hand;
mod chart;
mod contestant;
mod crowd;
mod density;
mod events;
mod exec_sync;
mod floor;
mod host;
mod idle;
mod lists;
mod makers;
mod meter;
mod options;
mod plugins;
mod progress;
mod raw;
mod report;
mod scratch;
mod sheet;
mod statistics;
mod stats;
mod table;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::{gate, paths};
use contestant::{Contestant, Failure};
use host::Host;
pub use options::{Family, Options, Who};
use progress::Progress;
use report::Report;
use sheet::Sheet;

/// Measures what `options` ask for, shows it, and writes it below `target/bench`.
pub fn run(options: &Options) -> Result<()> {
    ensure!(gate::open("bench"), "this machine cannot run the benchmark");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let limit = options.limit();
    let measured = runtime.block_on(async { tokio::time::timeout(limit, measure(options)).await });
    let report = measured.with_context(|| format!("the run did not end within {} s", limit.as_secs()))??;
    let json = report.json()?;
    if options.json {
        println!("{json}");
    } else {
        print!("{}", table::render(&report));
    }
    let dir = directory();
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    for (name, text) in [("bench.json", json), ("bench.svg", chart::render(&report))] {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        eprintln!("bench: {}", path.display());
    }
    Ok(())
}

async fn measure(options: &Options) -> Result<Report> {
    let mut bench = Bench {
        options: options.clone(),
        sheet: Sheet::default(),
        host: Host::look()?,
        floor: Vec::new(),
        progress: Progress::of(slots(options)),
        failures: Vec::new(),
    };
    if [Family::Scratch, Family::Exec, Family::Events].iter().any(|family| options.wants(*family)) {
        bench.interleaved().await?;
    } else if options.wants(Family::Floor) {
        bench.floor()?;
    }
    bench.crowd().await?;
    if options.wants(Family::Lists) {
        bench.lists().await?;
    }
    let plugins = bench.plugins()?;
    bench.progress.finish();
    let Bench { options, sheet, host, floor, failures, .. } = bench;
    Ok(Report { options, host, sheet, floor, plugins, failures })
}

/// Slots of a contestant that has the machine to itself.
const CROWD_SLOTS: usize = 6;
const LISTS_SLOTS: usize = 4;

/// How many slots the progress counts.
fn slots(options: &Options) -> usize {
    let contestants = options.contestants().len();
    let wants = |family| usize::from(options.wants(family));
    let families = 2 * wants(Family::Scratch) + wants(Family::Exec) + wants(Family::Events);
    let crowds = options.contestants().into_iter().filter(|who| crowd::wanted(options, *who)).count();
    let lists = options.contestants().into_iter().filter(|who| options.is_daemon_of_its_own(*who)).count();
    let alone = CROWD_SLOTS * crowds + LISTS_SLOTS * lists * wants(Family::Lists);
    contestants * families * options.rounds() + alone
}

/// A run in progress.
struct Bench {
    options: Options,
    sheet: Sheet,
    host: Host,
    floor: Vec<floor::Piece>,
    progress: Progress,
    failures: Vec<Failure>,
}

impl Bench {
    /// Rounds in which all contestants have their turn, on nodes that live as long as the rounds do.
    async fn interleaved(&mut self) -> Result<()> {
        self.progress.stage("starting nodes, pulling images".to_owned());
        let mut contestants = Vec::new();
        for who in self.options.contestants() {
            self.progress.detail(who.label());
            contestants.push(Contestant::open(who).await?);
        }
        let rounds = self.options.rounds();
        for round in 0..rounds {
            self.sheet.begin_round(round);
            self.progress.stage(format!("round {} of {rounds}", round + 1));
            if self.options.wants(Family::Floor) {
                self.floor()?;
            }
            self.round(&contestants).await?;
            // Nobody is always first.
            contestants.rotate_left(1);
            self.host.note_load();
        }
        self.sheet.begin_round(0);
        self.progress.stage("looking for what is left".to_owned());
        for contestant in contestants {
            self.failures.extend(contestant.close()?);
        }
        Ok(())
    }

    async fn round(&mut self, contestants: &[Contestant]) -> Result<()> {
        let serial = self.options.serial();
        if self.options.wants(Family::Scratch) {
            for contestant in contestants {
                self.turn(contestant, "one pod after another");
                scratch::serial(contestant, serial, &mut self.sheet).await?;
            }
            for contestant in contestants {
                self.turn(contestant, "ten pods at once");
                scratch::burst(contestant, &mut self.sheet).await?;
            }
        }
        if self.options.wants(Family::Exec) {
            for contestant in contestants {
                self.turn(contestant, "ExecSync");
                let pod = contestant.sleeper("exec").await?;
                exec_sync::round(contestant, &pod, 2 * serial, &mut self.sheet).await?;
                contestant.end(&pod).await?;
                contestant.settle()?;
            }
        }
        if self.options.wants(Family::Events) {
            for contestant in contestants {
                self.turn(contestant, "events");
                events::round(contestant, serial, &mut self.sheet).await?;
            }
        }
        Ok(())
    }

    /// Many pods: each contestant on a machine of its own, one after another.
    async fn crowd(&mut self) -> Result<()> {
        for who in self.options.contestants() {
            if !crowd::wanted(&self.options, who) {
                continue;
            }
            self.progress.stage(format!("many pods: {}", who.label()));
            let contestant = Contestant::open(who).await?;
            crowd::measure(&contestant, &self.options, &mut self.sheet, &mut self.progress).await?;
            self.failures.extend(contestant.close()?);
            self.host.note_load();
            (0..CROWD_SLOTS).for_each(|_| self.progress.advance());
        }
        Ok(())
    }

    /// Many containers that have ended.
    async fn lists(&mut self) -> Result<()> {
        let contestants = self.options.contestants().into_iter();
        for who in contestants.filter(|who| self.options.is_daemon_of_its_own(*who)).collect::<Vec<_>>() {
            self.progress.stage(format!("many containers: {}", who.label()));
            let contestant = Contestant::open(who).await?;
            let sizes = self.options.list_sizes(who);
            lists::measure(&contestant, sizes, &mut self.sheet, &mut self.progress).await?;
            self.failures.extend(contestant.close()?);
            self.host.note_load();
            (0..LISTS_SLOTS).for_each(|_| self.progress.advance());
        }
        Ok(())
    }

    /// CNI plugins without any daemon.
    fn plugins(&mut self) -> Result<Option<plugins::Found>> {
        if !self.options.wants(Family::Cni) {
            return Ok(None);
        }
        self.progress.stage("CNI plugins by three makers".to_owned());
        let (rounds, crowd) = (self.options.rounds(), self.options.crowd());
        plugins::measure(plugins::Extent { rounds, pods: self.options.serial(), crowd }).map(Some)
    }

    fn floor(&mut self) -> Result<()> {
        self.progress.detail("what the kernel takes");
        floor::look(&mut self.floor)
    }

    fn turn(&mut self, contestant: &Contestant, what: &str) {
        self.progress.detail(&format!("{}: {what}", contestant.who.label()));
        self.progress.advance();
    }
}

/// `target/bench` of this build.
fn directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| paths::workspace().join("target")).join("bench")
}

//! Benchmarks beside containerd in one run: the life of a pod, one by one and ten at once, ExecSync, and memory.
//!
//! Both nodes stand side by side and take turns, round by round, so that a noisy machine is noisy for both. CPU is
//! what the node's cgroup used, daemon, supervisors, OCI runtime and plugins included, the client left out.

mod measure;
mod report;

use anyhow::{Result, ensure};
use clap::Parser;
use e2e::daemon::{Endpoint, Setup};
use e2e::gate;

use measure::{Contender, Samples};

/// Benchmarks of the runtime beside containerd.
#[derive(Parser)]
struct Arguments {
    /// The short form: fewer rounds and pods.
    #[arg(long)]
    quick: bool,
}

/// How much is measured.
struct Size {
    rounds: usize,
    serial: usize,
    at_once: usize,
    execs: usize,
    pods: usize,
}

const FULL: Size = Size { rounds: 5, serial: 10, at_once: 10, execs: 50, pods: 50 };
const QUICK: Size = Size { rounds: 3, serial: 4, at_once: 10, execs: 20, pods: 10 };

#[tokio::main]
async fn main() -> Result<()> {
    let size = if Arguments::parse().quick { QUICK } else { FULL };
    ensure!(gate::open("the benchmark"), "this machine cannot run the benchmark");
    let handler = |endpoint, name: &str| Setup { default_handler: name.to_owned(), ..Setup::of(endpoint) };
    let mut contenders = vec![
        Contender::start("berth, crun", handler(Endpoint::Berth, "crun")).await?,
        Contender::start("berth, runc", handler(Endpoint::Berth, "runc")).await?,
        Contender::start("containerd, runc", handler(Endpoint::Containerd, "runc")).await?,
    ];
    for round in 1..=size.rounds {
        eprintln!("round {round} of {}", size.rounds);
        for contender in &mut contenders {
            contender.serial(size.serial).await?;
        }
        for contender in &mut contenders {
            contender.at_once(size.at_once).await?;
        }
        for contender in &mut contenders {
            contender.execs(size.execs).await?;
        }
    }
    for contender in &mut contenders {
        eprintln!("memory of {} with {} pods", contender.name, size.pods);
        contender.memory(size.pods).await?;
    }
    let results: Vec<(&str, Samples)> = contenders.into_iter().map(Contender::end).collect();
    report::write(&results, size.pods)
}

//! What a run of the benchmark is asked for.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::Serialize;

use super::lists::SIZES;

/// Compares Berth with containerd in one run, side by side and interleaved: time, CPU seconds, memory.
///
/// Needs root, containerd, runc and crun (`make setup` installs them) and release binaries (`make build`).
/// Results go to standard output as a table, and to target/bench as JSON and SVG.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "bench", version)]
pub struct Options {
    /// A minute instead of several: fewer rounds, fewer pods
    #[arg(long)]
    pub quick: bool,
    /// Rounds of each interleaved family (default 9, with --quick 3)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub rounds: Option<u16>,
    /// Measure only this family; may be repeated
    #[arg(long, value_enum, value_name = "FAMILY")]
    pub only: Vec<Family>,
    /// Measure only this contestant; may be repeated
    #[arg(long, value_enum, value_name = "NAME")]
    pub contestant: Vec<Who>,
    /// Print the JSON document instead of the table
    #[arg(long)]
    pub json: bool,
}

/// A group of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// A pod's whole life: one after another, and ten at once
    Scratch,
    /// ExecSync of /bin/true: one after another, and ten at once
    Exec,
    /// From the end of a container's process to its event
    Events,
    /// Memory of daemon and supervision with many pods
    Density,
    /// CPU of statistics of many pods
    Statistics,
    /// CPU of a node of many pods that nothing happens on, asked as a kubelet asks
    Idle,
    /// Lists of many containers, and the daemon's memory with them
    Lists,
    /// What the kernel itself takes, to show how noisy the host is
    Floor,
    /// CNI plugins beside the reference's and Debian's: ADD and DEL of bridge, host-local and two ports
    Cni,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
pub enum Who {
    /// containerd with runc and the reference CNI plugins: what the others are compared with
    #[serde(rename = "containerd")]
    Containerd,
    /// cri-server with its default runtime handler, crun
    #[serde(rename = "berth-crun")]
    BerthCrun,
    /// cri-server with runc, for like with like
    #[serde(rename = "berth-runc")]
    BerthRunc,
}

impl Who {
    /// Everyone, the reference first.
    pub const ALL: [Self; 3] = [Self::Containerd, Self::BerthCrun, Self::BerthRunc];

    /// Heading of a column.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Containerd => "containerd + runc",
            Self::BerthCrun => "Berth + crun",
            Self::BerthRunc => "Berth + runc",
        }
    }

    /// The runtime handler.
    #[must_use]
    pub fn handler(self) -> &'static str {
        match self {
            Self::BerthCrun => "crun",
            Self::Containerd | Self::BerthRunc => "runc",
        }
    }
}

impl Options {
    /// Whether that family is wanted.
    #[must_use]
    pub fn wants(&self, family: Family) -> bool {
        self.only.is_empty() || self.only.contains(&family)
    }

    /// Contestants, the reference first.
    #[must_use]
    pub fn contestants(&self) -> Vec<Who> {
        let wanted = |who: &Who| self.contestant.is_empty() || self.contestant.contains(who);
        Who::ALL.into_iter().filter(wanted).collect()
    }

    /// Rounds of each interleaved family.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.rounds.map_or(self.either(3, 9), usize::from)
    }

    /// Pods or commands one after another in one round.
    #[must_use]
    pub fn serial(&self) -> usize {
        self.either(5, 10)
    }

    /// Pods of the density and statistics families.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.either(20, 100)
    }

    /// Pods of the idle family, not fewer than [`Self::pods`].
    #[must_use]
    pub fn idle_pods(&self) -> usize {
        self.either(20, 110)
    }

    /// How long the idle family looks.
    #[must_use]
    pub fn idle_time(&self) -> Duration {
        Duration::from_secs(self.either(10, 40))
    }

    /// Containers at which lists are measured, ascending.
    #[must_use]
    pub fn list_sizes(&self, who: Who) -> &'static [usize] {
        // The reference takes too long to make as many.
        let most = if self.quick || who == Who::Containerd { 1 } else { SIZES.len() };
        &SIZES[..most]
    }

    /// Whether a contestant is measured in families where only the daemon counts: both of ours have the same.
    #[must_use]
    pub fn is_daemon_of_its_own(&self, who: Who) -> bool {
        who != Who::BerthRunc || !self.contestants().contains(&Who::BerthCrun)
    }

    /// Pods on one bridge at the same time.
    #[must_use]
    pub fn crowd(&self) -> usize {
        self.either(100, 1000)
    }

    /// Longest time of the whole run.
    #[must_use]
    pub fn limit(&self) -> Duration {
        Duration::from_secs(60 * (self.either(8, 35) + self.rounds() as u64))
    }

    fn either<T>(&self, quick: T, whole: T) -> T {
        if self.quick { quick } else { whole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_narrow_what_is_measured() {
        let check = |line: &str, families: usize, contestants: usize, rounds: usize| {
            let options = Options::try_parse_from(line.split(' ')).unwrap();
            let wanted = Family::value_variants().iter().filter(|family| options.wants(**family)).count();
            let found = (wanted, options.contestants().len(), options.rounds());
            assert_eq!(found, (families, contestants, rounds), "{line}");
        };
        check("bench", 9, 3, 9);
        check("bench --quick", 9, 3, 3);
        check("bench --quick --rounds 1 --only exec", 1, 3, 1);
        check("bench --only exec --only floor --contestant berth-crun", 2, 1, 9);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in
            ["bench --rounds 0", "bench --rounds 101", "bench --only speed", "bench --contestant cri-o"]
        {
            assert!(Options::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}

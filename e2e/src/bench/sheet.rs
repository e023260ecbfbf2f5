//! What was measured: values by metric, contestant and round, and what they come to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::options::{Family, Who};
use super::stats::{Ratio, median, quantile, ratio};

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Unit {
    /// Milliseconds of wall time.
    #[serde(rename = "ms")]
    Wall,
    /// Milliseconds of CPU time.
    #[serde(rename = "cpu-ms")]
    Cpu,
    /// MiB of proportional set size.
    #[serde(rename = "MiB")]
    Memory,
    /// Percent of one processor.
    #[serde(rename = "%")]
    Share,
}

impl Unit {
    /// As tables show it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Wall => "ms",
            Self::Cpu => "CPU ms",
            Self::Memory => "MiB Pss",
            Self::Share => "% of a core",
        }
    }
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Metric {
    /// Its family.
    pub family: Family,
    /// Heading under which tables show it.
    pub group: &'static str,
    /// Its name, unique under the heading.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
}

/// Values of one metric: by contestant, by round.
pub type Values = BTreeMap<Who, Vec<Vec<f64>>>;

/// All that was measured, in the order in which it was measured first.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    rows: Vec<(Metric, Values)>,
    round: usize,
}

/// What the values of one contestant come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// Smallest.
    pub min: f64,
    /// Middle.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// Median of each round.
    pub rounds: Vec<f64>,
}

impl Sheet {
    /// Values from now on belong to that round.
    pub fn begin_round(&mut self, round: usize) {
        self.round = round;
    }

    /// Notes a value.
    pub fn add(&mut self, metric: Metric, who: Who, value: f64) {
        let at = match self.rows.iter().position(|(row, _)| *row == metric) {
            Some(at) => at,
            None => {
                self.rows.push((metric, Values::new()));
                self.rows.len() - 1
            }
        };
        let rounds = self.rows[at].1.entry(who).or_default();
        rounds.resize(rounds.len().max(self.round + 1), Vec::new());
        rounds[self.round].push(value);
    }

    /// The metrics, in order.
    pub fn metrics(&self) -> impl Iterator<Item = Metric> {
        self.rows.iter().map(|(metric, _)| *metric)
    }

    /// What a contestant's values come to.
    #[must_use]
    pub fn summary(&self, metric: Metric, who: Who) -> Option<Summary> {
        let rounds = self.rows.iter().find(|(row, _)| *row == metric)?.1.get(&who)?;
        let pool: Vec<f64> = rounds.iter().flatten().copied().collect();
        Some(Summary {
            count: pool.len(),
            min: pool.iter().copied().fold(f64::INFINITY, f64::min),
            p50: median(&pool),
            p90: quantile(&pool, 0.9),
            p99: quantile(&pool, 0.99),
            rounds: rounds.iter().filter(|round| !round.is_empty()).map(|round| median(round)).collect(),
        })
    }

    /// A contestant beside the reference; none for the reference itself.
    #[must_use]
    pub fn ratio(&self, metric: Metric, who: Who) -> Option<Ratio> {
        if who == Who::Containerd {
            return None;
        }
        let reference = self.summary(metric, Who::Containerd)?;
        ratio(&reference.rounds, &self.summary(metric, who)?.rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRIC: Metric = Metric { family: Family::Exec, group: "g", name: "n", unit: Unit::Wall };

    #[test]
    fn values_are_kept_by_round() {
        let mut sheet = Sheet::default();
        for (round, values) in [[10.0, 12.0], [20.0, 20.0]].into_iter().enumerate() {
            sheet.begin_round(round);
            for value in values {
                sheet.add(METRIC, Who::Containerd, value);
                sheet.add(METRIC, Who::BerthCrun, value / 2.0);
            }
        }
        let summary = sheet.summary(METRIC, Who::Containerd).unwrap();
        assert_eq!((summary.count, summary.min, summary.p50), (4, 10.0, 16.0));
        assert_eq!(summary.rounds, [11.0, 20.0]);
        assert_eq!(sheet.ratio(METRIC, Who::BerthCrun).unwrap().point, 0.5);
        assert_eq!(sheet.ratio(METRIC, Who::Containerd), None);
        assert_eq!(sheet.ratio(METRIC, Who::BerthRunc), None);
    }
}

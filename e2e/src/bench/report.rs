//! The result as one document, for programs.

use anyhow::Result;
use serde::Serialize;

use super::budget::{BUDGETS, Budget, Verdict};
use super::contestant::Failure;
use super::floor::Piece;
use super::host::Host;
use super::options::{Options, Who};
use super::plugins::Found;
use super::sheet::{Metric, Sheet, Summary};
use super::stats::Ratio;

/// How the numbers came about; part of the document and of the table.
pub const METHOD: &str = "\
Each contestant has a node of its own; rounds are interleaved and change their order. Wall time is measured in the
client. CPU is what the kernel charged (cpuacct) to the cgroup that the daemon was moved to and that monitors, shims,
OCI runtimes and CNI plugins are born in (stack), and to that and the containers' cgroups (all), until the node is at
rest again. p50, p90, p99 are of all samples; a ratio is that of the medians of the rounds' medians, with a 95 %
interval (bootstrap over rounds), whose worse end is judged. Memory is Pss, with no other node beside.";

/// All that a run has to say.
#[derive(Debug)]
pub struct Report {
    /// What was asked for.
    pub options: Options,
    /// The machine.
    pub host: Host,
    /// What was measured.
    pub sheet: Sheet,
    /// What the kernel takes.
    pub floor: Vec<Piece>,
    /// CNI plugins by maker.
    pub plugins: Option<Found>,
    /// Calls that the reference failed.
    pub failures: Vec<Failure>,
}

#[derive(Serialize)]
struct Document<'a> {
    method: &'static str,
    options: &'a Options,
    host: &'a Host,
    metrics: Vec<Row>,
    budgets: Vec<Judged>,
    floor_us: &'a [Piece],
    #[serde(skip_serializing_if = "Option::is_none")]
    cni: Option<&'a Found>,
    failures: &'a [Failure],
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    metric: Metric,
    results: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    contestant: Who,
    #[serde(flatten)]
    summary: Summary,
    ratio: Option<Ratio>,
}

#[derive(Serialize)]
struct Judged {
    #[serde(flatten)]
    budget: Budget,
    contestant: Who,
    value: f64,
    verdict: Verdict,
}

impl Report {
    /// The document as JSON.
    pub fn json(&self) -> Result<String> {
        let document = Document {
            method: METHOD,
            options: &self.options,
            host: &self.host,
            metrics: self.sheet.metrics().map(|metric| self.row(metric)).collect(),
            budgets: self
                .judged()
                .map(|(budget, contestant, value, verdict)| Judged { budget, contestant, value, verdict })
                .collect(),
            floor_us: &self.floor,
            cni: self.plugins.as_ref(),
            failures: &self.failures,
        };
        Ok(serde_json::to_string_pretty(&document)?)
    }

    /// Every budget that was measured, by contestant.
    pub fn judged(&self) -> impl Iterator<Item = (Budget, Who, f64, Verdict)> {
        let ours = [Who::BerthCrun, Who::BerthRunc];
        BUDGETS.into_iter().flat_map(move |budget| ours.map(|who| (budget, who))).filter_map(
            |(budget, who)| {
                let (value, verdict) = budget.judge(&self.sheet, who)?;
                Some((budget, who, value, verdict))
            },
        )
    }

    fn row(&self, metric: Metric) -> Row {
        let cell = |who| {
            let summary = self.sheet.summary(metric, who)?;
            Some(Cell { contestant: who, summary, ratio: self.sheet.ratio(metric, who) })
        };
        Row { metric, results: Who::ALL.into_iter().filter_map(cell).collect() }
    }
}

//! The budgets of the design that this benchmark can check, and whether they are met. Pure.

use serde::Serialize;

use super::options::Who;
use super::sheet::{Metric, Sheet};
use super::{density, events, exec_sync, idle, lists, scratch, statistics};

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// The ratio to containerd; its interval's worse end counts.
    Ratio,
    /// The median itself.
    Absolute,
    /// The value that 99 of 100 are below.
    Tail,
}

/// One budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// What it is called in tables and charts.
    pub id: &'static str,
    /// What it is about.
    pub what: &'static str,
    /// What is judged.
    pub metric: Metric,
    /// How.
    pub limit: Limit,
    /// Has to be met.
    pub must: f64,
    /// Would be good.
    pub aim: Option<f64>,
}

/// What became of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Better than the aim.
    Aim,
    /// Better than the limit.
    Met,
    /// Worse than the limit.
    Missed,
}

impl Verdict {
    /// As tables show it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Aim => "aim met",
            Self::Met => "met",
            Self::Missed => "MISSED",
        }
    }
}

const fn ratio(id: &'static str, what: &'static str, metric: Metric, must: f64, aim: f64) -> Budget {
    Budget { id, what, metric, limit: Limit::Ratio, must, aim: Some(aim) }
}

const fn absolute(
    id: &'static str,
    what: &'static str,
    metric: Metric,
    must: f64,
    aim: Option<f64>,
) -> Budget {
    Budget { id, what, metric, limit: Limit::Absolute, must, aim }
}

const fn tail(id: &'static str, what: &'static str, metric: Metric, must: f64) -> Budget {
    Budget { id, what, metric, limit: Limit::Tail, must, aim: None }
}

/// All budgets, in the design's order.
pub const BUDGETS: [Budget; 21] = [
    ratio("P1", "run + create + start, p50", scratch::UP, 0.35, 0.15),
    absolute("P1", "run + create + start, p50", scratch::UP, 40.0, None),
    ratio("P2", "ten pods at once, up", scratch::BURST_UP, 0.25, 0.12),
    ratio("P3", "CPU of a pod's life, stack", scratch::CPU_STACK, 0.25, 0.12),
    ratio("P3", "CPU of a pod's life, all", scratch::CPU_ALL, 0.25, 0.12),
    absolute("P3", "CPU of a pod's life, stack", scratch::CPU_STACK, 25.0, None),
    ratio("P5", "ExecSync /bin/true, p50", exec_sync::SERIAL, 0.20, 0.10),
    absolute("P5", "ExecSync over `exec` by hand", exec_sync::OVER, 6.0, None),
    absolute("P7", "supervision per pod", density::PER_POD, 1.0, Some(0.5)),
    absolute("P8", "daemon, one pod", density::DAEMON_ONE, 20.0, None),
    absolute("P8", "daemon, all pods", density::DAEMON_MANY, 35.0, None),
    absolute("P8", "daemon, 500 containers", lists::MEMORY_500, 80.0, None),
    absolute("P9", "idle, 110 pods", idle::POLLED, 0.5, None),
    tail("P10", "ListContainers of 2000, p99", lists::CONTAINERS_2000, 10.0),
    tail("P10", "ListPodSandbox of 500, p99", lists::SANDBOXES_500, 10.0),
    absolute("P11", "ListPodSandboxStats, 100", statistics::SANDBOXES, 15.0, None),
    absolute("P11", "ListContainerStats, 100", statistics::CONTAINERS, 15.0, None),
    ratio("P11", "ListContainerStats, 100", statistics::CONTAINERS, 0.35, 0.2),
    absolute("P12", "exit to event, p50", events::LAG, 5.0, None),
    tail("P12", "exit to event, p99", events::LAG, 5.0),
    absolute("P12", "exits in a row, p50", events::LAG_IN_A_ROW, 5.0, None),
];

impl Budget {
    /// The value that is judged, and the verdict; none where it was not measured.
    #[must_use]
    pub fn judge(&self, sheet: &Sheet, who: Who) -> Option<(f64, Verdict)> {
        let value = match self.limit {
            Limit::Ratio => sheet.ratio(self.metric, who)?.high,
            Limit::Absolute => sheet.summary(self.metric, who)?.p50,
            Limit::Tail => sheet.summary(self.metric, who)?.p99,
        };
        let verdict = match self.aim {
            Some(aim) if value <= aim => Verdict::Aim,
            _ if value <= self.must => Verdict::Met,
            _ => Verdict::Missed,
        };
        Some((value, verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_judged_by_ratio_or_by_value() {
        let check = |reference: f64, own: f64, limit: Limit, expect: Option<Verdict>| {
            let mut sheet = Sheet::default();
            sheet.add(scratch::UP, Who::Containerd, reference);
            sheet.add(scratch::UP, Who::BerthCrun, own);
            let budget = BUDGETS.into_iter().find(|b| b.metric == scratch::UP && b.limit == limit).unwrap();
            let verdict = budget.judge(&sheet, Who::BerthCrun).map(|(_, verdict)| verdict);
            assert_eq!(verdict, expect, "{reference} {own} {limit:?}");
        };
        check(100.0, 10.0, Limit::Ratio, Some(Verdict::Aim));
        check(100.0, 35.0, Limit::Ratio, Some(Verdict::Met));
        check(100.0, 36.0, Limit::Ratio, Some(Verdict::Missed));
        check(0.0, 36.0, Limit::Ratio, None);
        check(100.0, 36.0, Limit::Absolute, Some(Verdict::Met));
        check(100.0, 41.0, Limit::Absolute, Some(Verdict::Missed));
    }
}

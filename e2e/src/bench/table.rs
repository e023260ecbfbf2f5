//! The result as a table, for people.

use std::fmt::Write;

use super::budget::{Budget, Limit};
use super::makers;
use super::options::Who;
use super::report::{METHOD, Report};
use super::sheet::{Metric, Unit};
use super::stats::Ratio;

/// Width of the first column.
const NAME: usize = 38;
/// Width of a number.
const NUMBER: usize = 7;
/// Width of a ratio with its interval.
const RATIO: usize = 17;

/// The whole table.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    heading(&mut text, report);
    let metrics: Vec<Metric> = report.sheet.metrics().collect();
    let mut groups: Vec<&str> = Vec::new();
    for metric in &metrics {
        if !groups.contains(&metric.group) {
            groups.push(metric.group);
        }
    }
    for name in groups {
        let rows: Vec<Metric> = metrics.iter().copied().filter(|metric| metric.group == name).collect();
        group(&mut text, report, name, &rows);
    }
    if let Some(found) = &report.plugins {
        text += &makers::render(found);
    }
    failures(&mut text, report);
    floor(&mut text, report);
    budgets(&mut text, report);
    text
}

/// Writing to a string cannot fail.
macro_rules! line {
    ($text:expr) => { line!($text, "") };
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

fn heading(text: &mut String, report: &Report) {
    let host = &report.host;
    line!(
        text,
        "Berth beside containerd: {} rounds, {} CPUs, kernel {}",
        report.options.rounds(),
        host.cpus,
        host.kernel
    );
    line!(text, "{}", host.programs.join(" · "));
    let (first, last) = (host.load.first(), host.load.last());
    line!(
        text,
        "load average {} before, {} after",
        first.map_or("-", String::as_str),
        last.map_or("-", String::as_str)
    );
    line!(text);
    line!(text, "{METHOD}");
}

fn group(text: &mut String, report: &Report, name: &str, rows: &[Metric]) {
    let contestants = report.options.contestants();
    // Where each round has one value, spread over samples says nothing.
    let spread = rows.iter().any(|metric| metric.unit == Unit::Wall);
    let columns: &[&str] = if spread { &["p50", "p90", "p99"] } else { &["p50"] };
    let width = if spread { columns.len() * NUMBER } else { 20 };
    line!(text, "\n{name}");
    let mut titles = format!("{:NAME$}", "");
    let mut labels = titles.clone();
    for who in &contestants {
        let _ = write!(titles, " {:>width$}", who.label());
        let each: String = columns.iter().map(|column| format!("{column:>NUMBER$}")).collect();
        let _ = write!(labels, " {each:>width$}");
    }
    for who in contestants.iter().filter(|who| **who != Who::Containerd) {
        let _ = write!(titles, "  {:>RATIO$}", "ratio");
        let _ = write!(labels, "  {:>RATIO$}", format!("with {}", who.handler()));
    }
    line!(text, "{titles}\n{labels}");
    for metric in rows {
        let mut row = format!("{:NAME$}", format!("{} [{}]", metric.name, metric.unit.label()));
        for who in &contestants {
            let cells = report.sheet.summary(*metric, *who).map_or_else(
                || "-".to_owned(),
                |all| {
                    [all.p50, all.p90, all.p99][..columns.len()]
                        .iter()
                        .map(|v| format!("{:>NUMBER$}", number(*v)))
                        .collect()
                },
            );
            let _ = write!(row, " {cells:>width$}");
        }
        for who in contestants.iter().filter(|who| **who != Who::Containerd) {
            let _ = write!(
                row,
                "  {:>RATIO$}",
                report.sheet.ratio(*metric, *who).map_or("-".to_owned(), interval)
            );
        }
        line!(text, "{row}");
    }
}

fn failures(text: &mut String, report: &Report) {
    if report.failures.is_empty() {
        return;
    }
    line!(text, "\ncalls that failed and were made again, whose times count: {}", report.failures.len());
    for failure in &report.failures {
        line!(text, "{}: {}", failure.contestant.label(), failure.answer);
    }
}

fn floor(text: &mut String, report: &Report) {
    if report.floor.is_empty() {
        return;
    }
    line!(text, "\nfloor: what the kernel takes here [µs]");
    line!(text, "{:44} {:>NUMBER$} {:>NUMBER$} {:>NUMBER$}", "", "min", "p50", "p90");
    for piece in &report.floor {
        line!(
            text,
            "{:44} {:>NUMBER$.0} {:>NUMBER$.0} {:>NUMBER$.0}",
            piece.name,
            piece.min,
            piece.p50,
            piece.p90
        );
    }
}

fn budgets(text: &mut String, report: &Report) {
    let judged: Vec<_> = report.judged().collect();
    if judged.is_empty() {
        return;
    }
    line!(text, "\nbudgets (the worse end of a ratio's interval counts)");
    line!(
        text,
        "{:4}{:28} {:>12} {:>9}   {:14} {:>9}  verdict",
        "",
        "",
        "must",
        "aim",
        "contestant",
        "value"
    );
    for (budget, who, value, verdict) in judged {
        let (must, aim) =
            (limit(&budget, budget.must), budget.aim.map_or("-".to_owned(), |aim| limit(&budget, aim)));
        let value = limit(&budget, value);
        let (id, what, who, verdict) = (budget.id, budget.what, who.label(), verdict.word());
        line!(text, "{id:4}{what:28} {must:>12} {aim:>9}   {who:14} {value:>9}  {verdict}");
    }
}

fn limit(budget: &Budget, value: f64) -> String {
    match (budget.limit, budget.metric.unit) {
        (Limit::Ratio, _) => format!("{value:.2} ×"),
        (Limit::Absolute | Limit::Tail, Unit::Memory) => format!("{} MiB", number(value)),
        (Limit::Absolute | Limit::Tail, Unit::Share) => format!("{} %", number(value)),
        (Limit::Absolute | Limit::Tail, Unit::Wall | Unit::Cpu) => format!("{} ms", number(value)),
    }
}

/// Three digits are enough.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

pub(super) fn interval(ratio: Ratio) -> String {
    if ratio.low == ratio.high {
        return format!("{:.2}", ratio.point);
    }
    format!("{:.2} [{:.2}–{:.2}]", ratio.point, ratio.low, ratio.high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (value, expect) in
            [(0.0, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (99.97, "100"), (1234.5, "1234")]
        {
            assert_eq!(number(value), expect);
        }
    }

    #[test]
    fn an_interval_of_no_width_is_not_shown() {
        assert_eq!(interval(Ratio { point: 0.25, low: 0.25, high: 0.25 }), "0.25");
        assert_eq!(interval(Ratio { point: 0.25, low: 0.2, high: 0.3 }), "0.25 [0.20–0.30]");
    }
}

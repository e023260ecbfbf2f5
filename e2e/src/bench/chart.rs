//! The result as a picture: bars by metric, SVG without scripts or fonts of its own, readable on light and on dark.

use std::fmt::Write;

use super::budget::{BUDGETS, Limit};
use super::options::Who;
use super::report::Report;
use super::sheet::Metric;
use super::table::number;
use super::{density, events, exec_sync, idle, lists, scratch, statistics};

/// What is drawn, top to bottom.
const DRAWN: [(Metric, &str); 13] = [
    (scratch::UP, "run + create + start of a pod, p50"),
    (scratch::LIFE, "whole life of a pod, p50"),
    (scratch::CPU_STACK, "CPU of a pod's life, without the containers' cgroups"),
    (scratch::BURST_UP, "ten pods at once, up"),
    (scratch::BURST_DOWN, "ten pods at once, down"),
    (exec_sync::SERIAL, "ExecSync /bin/true, p50"),
    (exec_sync::OVER, "ExecSync /bin/true over the OCI runtime's exec by hand, p50"),
    (events::LAG, "end of a process to its event, p50"),
    (lists::CONTAINERS_2000, "ListContainers of 2000, p50"),
    (statistics::SANDBOXES, "CPU of ListPodSandboxStats of 100 pods"),
    (idle::POLLED, "CPU of 110 idle pods, polled as by a kubelet"),
    (density::PER_POD, "memory of supervision per pod"),
    (density::DAEMON_MANY, "memory of the daemon"),
];

const WIDTH: f64 = 760.0;
/// Where bars begin.
const LEFT: f64 = 150.0;
/// Longest bar; numbers stand behind it.
const LONGEST: f64 = 440.0;
const BAR: f64 = 16.0;
const GAP: f64 = 4.0;
const TITLE: f64 = 24.0;
const BETWEEN: f64 = 20.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#333}.t{font-weight:600}.n{fill:#666}.m{stroke:#c0392b;stroke-width:2}\
.containerd{fill:#9aa0a8}.crun{fill:#2a9d8f}.runc{fill:#6c8ebf}\
@media(prefers-color-scheme:dark){text{fill:#e4e6e8}.n{fill:#a6abb2}.m{stroke:#ff7b6b}}";

/// The whole picture.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut body = String::new();
    let mut top = 30.0;
    for (metric, title) in DRAWN {
        top = group(&mut body, report, (metric, title), top);
    }
    let note = "the red line is the budget that has to be met; shorter is better";
    let _ = write!(body, r#"<text class="n" x="12" y="{:.0}">{note}</text>"#, top + 4.0);
    let height = top + 20.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"Berth beside containerd\"><style>{STYLE}</style>{body}</svg>\n"
    )
}

/// Draws one metric from `top` down and says where the next begins.
fn group(body: &mut String, report: &Report, (metric, title): (Metric, &str), top: f64) -> f64 {
    let value = |who| Some((who, report.sheet.summary(metric, who)?.p50));
    let bars: Vec<(Who, f64)> = Who::ALL.into_iter().filter_map(value).collect();
    let longest = bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    if longest <= 0.0 {
        return top;
    }
    let unit = metric.unit.label();
    let _ = write!(body, r#"<text class="t" x="12" y="{top:.0}">{title} [{unit}]</text>"#);
    let mut y = top + TITLE - BAR;
    let first = y;
    for (who, value) in &bars {
        let (class, label) = (class(*who), who.label());
        let width = (value / longest * LONGEST).max(1.0);
        let ratio = report.sheet.ratio(metric, *who);
        let ratio = ratio.map_or(String::new(), |ratio| format!("  ({:.2} ×)", ratio.point));
        let base = y + BAR - GAP;
        let _ = write!(
            body,
            "<text x=\"12\" y=\"{base:.0}\">{label}</text>\
             <rect class=\"{class}\" x=\"{LEFT}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>\
             <text class=\"n\" x=\"{:.1}\" y=\"{base:.0}\">{}{ratio}</text>",
            LEFT + width + 8.0,
            number(*value)
        );
        y += BAR + GAP;
    }
    if let Some(must) = must(metric, &bars).filter(|must| *must <= longest) {
        let x = LEFT + must / longest * LONGEST;
        let (from, to) = (first - 2.0, y - GAP + 2.0);
        let _ = write!(body, r#"<line class="m" x1="{x:.1}" x2="{x:.1}" y1="{from:.0}" y2="{to:.0}"/>"#);
    }
    y + BETWEEN
}

/// The strictest budget of a metric, in the metric's unit.
fn must(metric: Metric, bars: &[(Who, f64)]) -> Option<f64> {
    let reference = bars.iter().find(|(who, _)| *who == Who::Containerd).map(|(_, value)| *value);
    let limits =
        BUDGETS.iter().filter(|budget| budget.metric == metric).filter_map(|budget| match budget.limit {
            Limit::Ratio => Some(budget.must * reference?),
            Limit::Absolute => Some(budget.must),
            // Bars are medians.
            Limit::Tail => None,
        });
    limits.reduce(f64::min)
}

fn class(who: Who) -> &'static str {
    match who {
        Who::Containerd => "containerd",
        Who::BerthCrun => "crun",
        Who::BerthRunc => "runc",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_budget_is_drawn() {
        let bars = [(Who::Containerd, 100.0), (Who::BerthCrun, 20.0)];
        assert_eq!(must(scratch::UP, &bars), Some(35.0));
        assert_eq!(must(scratch::UP, &bars[1..]), Some(40.0));
        assert_eq!(must(scratch::LIFE, &bars), None);
    }
}

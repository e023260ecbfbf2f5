//! The table of CNI plugins by maker, and what is judged of it. Pure.

use std::fmt::Write;

use super::plugins::{Column, Found};
use super::stats::Ratio;
use super::table::{interval, number};

/// Width of a maker's column.
const COLUMN: usize = 20;

/// One limit, and what was found.
struct Limit {
    what: &'static str,
    must: f64,
    unit: &'static str,
    found: f64,
}

/// The table.
#[must_use]
pub fn render(found: &Found) -> String {
    let mut text = String::new();
    let mut row = |name: &str, cell: &dyn Fn(&Column) -> String| {
        let cells: String =
            found.columns.iter().map(|column| format!(" {:>COLUMN$}", cell(column))).collect();
        let _ = writeln!(text, "{name:38}{cells}");
    };
    row("\nCNI: bridge, host-local, two ports", &|column| column.maker.to_owned());
    let spread = |values: &[f64; 3]| values.map(number).join(" ");
    row("ADD, p50 p90 p99 [ms]", &|column| spread(&column.add));
    row("DEL, p50 p90 p99 [ms]", &|column| spread(&column.del));
    row("ADD [CPU ms]", &|column| number(column.cpu[0]));
    row("DEL [CPU ms]", &|column| number(column.cpu[1]));
    let names = ["ADD, ratio", "DEL, ratio", "ADD, CPU ratio", "DEL, CPU ratio"];
    for (at, name) in names.into_iter().enumerate() {
        row(name, &|column| column.ratios.map_or("-".to_owned(), |ratios: [Ratio; 4]| interval(ratios[at])));
    }
    row("programs beyond the plugins", &|column| {
        column.execs.map_or("-".to_owned(), |execs| execs.to_string())
    });
    let name = format!("pod {} against the first, ADD DEL", found.crowd);
    row(&name, &|column| column.growth.map_or("-".to_owned(), |growth| growth.map(number).join(" ")));
    for limit in limits(found) {
        let verdict = if limit.found <= limit.must { "met" } else { "MISSED" };
        let (what, must, unit, found) = (limit.what, number(limit.must), limit.unit, number(limit.found));
        let _ = writeln!(text, "  {what:36} must {must:>6} {unit:2} found {found:>6} {unit:2} {verdict}");
    }
    text
}

/// What ours are held to.
fn limits(found: &Found) -> Vec<Limit> {
    let Some(ours) = found.columns.iter().find(|column| column.maker == "Berth") else { return Vec::new() };
    let limit = |what, must, unit, found| Limit { what, must, unit, found };
    let mut limits =
        vec![limit("ADD, p50", 6.0, "ms", ours.add[0]), limit("DEL, p50", 3.0, "ms", ours.del[0])];
    if let Some([add, del, ..]) = ours.ratios {
        limits.push(limit("ADD, ratio, worse end", 0.15, "×", add.high));
        limits.push(limit("DEL, ratio, worse end", 0.25, "×", del.high));
    }
    if let Some([add, del]) = ours.growth {
        limits.push(limit("many pods, ADD", 1.5, "×", add));
        limits.push(limit("many pods, DEL", 1.5, "×", del));
    }
    limits.extend(ours.execs.map(|execs| limit("programs beyond the plugins", 0.0, "", execs as f64)));
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_judged() {
        let same = Ratio { point: 0.2, low: 0.2, high: 0.2 };
        let ours = Column {
            maker: "Berth",
            add: [5.0; 3],
            del: [4.0; 3],
            cpu: [1.0; 2],
            execs: Some(0),
            ratios: Some([same; 4]),
            growth: Some([1.0, 2.0]),
        };
        let text = render(&Found { columns: vec![ours], crowd: 7 });
        assert_eq!(text.matches(" met").count(), 4, "{text}");
        assert_eq!(text.matches("MISSED").count(), 3, "{text}");
        assert!(text.contains("pod 7 against the first"), "{text}");
    }
}

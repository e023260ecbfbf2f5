//! The results for people (a table), for programs (JSON), and as bars (SVG), in `.cache/bench`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use e2e::paths;
use serde_json::json;

use crate::measure::Samples;

/// Rows in the order of the report.
const ROWS: [&str; 8] = [
    "start one pod, ms",
    "stop and remove it, ms",
    "CPU of a pod's life, ms",
    "ten pods at once, whole lives, ms",
    "CPU of a pod's life, ten at once, ms",
    "ExecSync of true, ms",
    "CPU of an ExecSync, ms",
    "supervision of a pod, kB Pss",
];
const LAST_ROW: &str = "daemon, kB Pss";

/// Writes all three forms and prints the table. The last contender is the one that the others are compared with.
pub fn write(results: &[(&str, Samples)], pods: usize) -> Result<()> {
    let table = table(results, pods);
    println!("{table}");
    let dir = paths::cache().join("bench");
    std::fs::create_dir_all(&dir)?;
    let numbers: BTreeMap<&str, &Samples> = results.iter().map(|(name, samples)| (*name, samples)).collect();
    std::fs::write(dir.join("results.json"), serde_json::to_vec_pretty(&json!(numbers))?)?;
    std::fs::write(dir.join("results.md"), table)?;
    std::fs::write(dir.join("results.svg"), bars(results))?;
    println!("Written to {}/results.{{json,md,svg}}", dir.display());
    Ok(())
}

/// Medians side by side, and in brackets the part of the reference.
fn table(results: &[(&str, Samples)], pods: usize) -> String {
    let mut text = format!("Medians; memory with {pods} pods. In brackets: part of the last column.\n\n| |");
    results.iter().for_each(|(name, _)| text.push_str(&format!(" {name} |")));
    text.push_str("\n|---|");
    results.iter().for_each(|_| text.push_str("---:|"));
    for row in rows() {
        let _ = write!(text, "\n| {row} |");
        for (at, (_, samples)) in results.iter().enumerate() {
            let value = median(samples, row);
            let _ = match ratio(results, at, row) {
                Some(ratio) => write!(text, " {value:.1} ({ratio:.2} ×) |"),
                None => write!(text, " {value:.1} |"),
            };
        }
    }
    text.push('\n');
    text
}

/// A bar for each ratio to the reference; the line is the reference itself.
fn bars(results: &[(&str, Samples)]) -> String {
    const UNIT: f64 = 400.0;
    let mut body = String::new();
    let mut y = 30;
    for row in rows() {
        let _ = writeln!(body, "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{row}</text>");
        for (at, (name, _)) in results.iter().enumerate() {
            let Some(ratio) = ratio(results, at, row) else { continue };
            y += 20;
            let width = (ratio * UNIT).min(1.5 * UNIT);
            let _ = writeln!(body, "<rect x=\"160\" y=\"{}\" width=\"{width:.0}\" height=\"14\"/>", y - 12);
            let _ = writeln!(body, "<text x=\"10\" y=\"{y}\">{name}</text>");
            let _ = writeln!(body, "<text x=\"{:.0}\" y=\"{y}\">{ratio:.2}</text>", 166.0 + width);
        }
        y += 28;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"820\" height=\"{y}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#333\">\n<line x1=\"560\" y1=\"10\" x2=\"560\" y2=\"{y}\" stroke=\"#b33\"/>\n\
         <text x=\"566\" y=\"14\" fill=\"#b33\">{} = 1</text>\n<g>{body}</g>\n</svg>\n",
        results.last().map_or("", |(name, _)| name)
    )
}

fn rows() -> impl Iterator<Item = &'static str> {
    ROWS.into_iter().chain([LAST_ROW])
}

/// The contender's median over the last one's; none for the last one itself.
fn ratio(results: &[(&str, Samples)], at: usize, row: &str) -> Option<f64> {
    let (_, reference) = results.last()?;
    let (_, samples) = results.get(at).filter(|_| at + 1 < results.len())?;
    Some(median(samples, row) / median(reference, row))
}

fn median(samples: &Samples, row: &str) -> f64 {
    let mut values = samples.get(row).cloned().unwrap_or_default();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let of = |values: &[f64]| Samples::from([(LAST_ROW, values.to_vec())]);
        let results = [("ours", of(&[3.0, 1.0, 2.0])), ("theirs", of(&[4.0]))];
        assert_eq!(ratio(&results, 0, LAST_ROW), Some(0.5));
        assert_eq!(ratio(&results, 1, LAST_ROW), None);
        assert!(table(&results, 1).contains("| daemon, kB Pss | 2.0 (0.50 ×) | 4.0 |"));
    }
}

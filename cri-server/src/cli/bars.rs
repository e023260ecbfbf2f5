//! Progress of long work: bars on a terminal, plain lines otherwise.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

const WIDTH: u64 = 30;

/// Shows how far the parts of a work are.
pub struct Bars {
    terminal: bool,
    /// Lines on the terminal that are ours.
    drawn: usize,
    /// Last tenth of each part that was told on a plain line.
    told: BTreeMap<String, u64>,
}

/// How far one part is.
pub struct Part {
    /// Its name.
    pub name: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Bars {
    /// Bars on standard error.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), drawn: 0, told: BTreeMap::new() }
    }

    /// Shows the parts as they are now.
    pub fn show(&mut self, parts: &[Part]) -> std::io::Result<()> {
        if self.terminal { self.draw(parts) } else { self.tell(parts) }
    }

    fn draw(&mut self, parts: &[Part]) -> std::io::Result<()> {
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for part in parts {
            text.push_str(&format!("\x1b[2K{}\n", line(part)));
        }
        self.drawn = parts.len();
        std::io::stderr().write_all(text.as_bytes())
    }

    fn tell(&mut self, parts: &[Part]) -> std::io::Result<()> {
        for part in parts {
            let tenth = tenths(part);
            let told = self.told.insert(part.name.clone(), tenth);
            if told != Some(tenth) {
                writeln!(std::io::stderr(), "{}  {:3} %  {}", part.name, tenth * 10, size(part.total))?;
            }
        }
        Ok(())
    }
}

fn tenths(part: &Part) -> u64 {
    (part.done * 10).checked_div(part.total).unwrap_or(10).min(10)
}

fn line(part: &Part) -> String {
    let full = (part.done * WIDTH).checked_div(part.total).unwrap_or(WIDTH).min(WIDTH) as usize;
    let bar = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH as usize - full));
    format!("{}  {bar}  {:>9} of {}", part.name, size(part.done), size(part.total))
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_bars() {
        let check = |bytes: u64, expect: &str| assert_eq!(size(bytes), expect);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1536, "1.5 KiB");
        check(u64::MAX, "16777216.0 TiB");
        let part = Part { name: "x".into(), done: 50, total: 100 };
        assert!(line(&part).contains(&format!("{}{}", "█".repeat(15), "░".repeat(15))));
        assert_eq!(tenths(&Part { name: "x".into(), done: 0, total: 0 }), 10);
    }
}

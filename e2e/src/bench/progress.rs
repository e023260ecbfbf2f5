//! How far the run is, on standard error: one line that moves on a terminal, a line per stage elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::time::Instant;

/// Cells of the bar.
const WIDTH: usize = 30;

/// Where the run is.
#[derive(Debug)]
pub struct Progress {
    planned: usize,
    done: usize,
    stage: String,
    start: Instant,
    terminal: bool,
}

impl Progress {
    /// Nothing of `planned` slots is done.
    #[must_use]
    pub fn of(planned: usize) -> Self {
        let terminal = stderr().is_terminal();
        Self { planned, done: 0, stage: String::new(), start: Instant::now(), terminal }
    }

    /// A new stage begins.
    pub fn stage(&mut self, stage: String) {
        if !self.terminal {
            eprintln!("bench: {:3} % {:4} s  {stage}", self.percent(), self.start.elapsed().as_secs());
        }
        self.stage = stage;
        self.detail("");
    }

    /// What of the stage goes on.
    pub fn detail(&self, detail: &str) {
        if self.terminal {
            let filled = self.percent() * WIDTH / 100;
            let bar = format!("{}{}", "█".repeat(filled), "░".repeat(WIDTH - filled));
            eprint!("\r\x1b[K{bar} {:3} %  {}  {detail}", self.percent(), self.stage);
            // The bar is only for the eye.
            let _ = stderr().flush();
        }
    }

    /// One slot is done.
    pub fn advance(&mut self) {
        self.done += 1;
    }

    /// The run is at its end: clears the line.
    pub fn finish(self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        eprintln!("bench: done in {} s", self.start.elapsed().as_secs());
    }

    fn percent(&self) -> usize {
        (self.done * 100 / self.planned.max(1)).min(100)
    }
}

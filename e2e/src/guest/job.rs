//! What is said between the machine and its guest: the job on the disk, and events on the guest's second serial line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Name of the job's file on its disk.
pub const FILE: &str = "job.json";
/// Directory on the disk that holds the places, each under its whole path.
pub const FILES: &str = "files";

/// What the guest is to do.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Job {
    /// Directories that the guest is to see under their own paths.
    pub places: Vec<PathBuf>,
    /// Whether a policy of SELinux lies beside the job, to be loaded before anything else.
    pub selinux: bool,
    /// Environment of all steps.
    pub env: BTreeMap<String, String>,
    /// One after another; one that fails or passes its deadline does not hold up the next.
    pub steps: Vec<Step>,
}

/// One program to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What it is called in messages.
    pub name: String,
    /// The program, found in the guest.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its working directory.
    pub dir: PathBuf,
    /// What its environment has besides [`Job::env`].
    pub env: BTreeMap<String, String>,
    /// How long it may take, in seconds of the guest's clock.
    pub deadline_s: u64,
}

/// What the guest reports, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A step begins.
    Began {
        /// Its name.
        step: String,
    },
    /// A line of the running step's output.
    Line {
        /// The line, without its end.
        text: String,
    },
    /// The step has ended.
    Ended {
        /// Its name.
        step: String,
        /// What was wrong with its end; none when it went well.
        failure: Option<String>,
        /// How long it took.
        seconds: f32,
    },
    /// All steps were taken; the guest goes.
    Done,
    /// The guest cannot go on.
    Broken {
        /// Why.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_line() {
        let events = [
            Event::Began { step: "a".into() },
            Event::Line { text: "tab\t\"quote\" \u{1b}[0m".into() },
            Event::Ended { step: "a".into(), failure: Some("exit status: 1".into()), seconds: 1.5 },
            Event::Done,
        ];
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }
}

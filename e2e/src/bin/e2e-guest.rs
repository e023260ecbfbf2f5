//! Runs tests in a virtual machine with cgroup v2. `e2e-guest --help` says what can be chosen.

use std::process::ExitCode;

use clap::Parser;
use e2e::guest::plan::{self, Options};

fn main() -> ExitCode {
    match plan::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2e-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! Compares Berth with containerd in one run: time, CPU and memory. `bench --help` says what can be chosen.

use std::process::ExitCode;

use clap::Parser;
use e2e::bench::{self, Options};

fn main() -> ExitCode {
    match bench::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

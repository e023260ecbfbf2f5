//! `cri-server`: arguments → configuration → run.
use std::process::ExitCode;

use clap::Parser;
use cri_server::cli::{Arguments, run};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cri-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

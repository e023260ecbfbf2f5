//! The command line of `cri-server`: the daemon and its administrator subcommands.

mod bars;
mod image;
mod serve;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::Config;

/// CRI v1 container runtime for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(name = "cri-server", version, about, max_term_width = 100)]
pub struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, short, global = true, value_name = "FILE", default_value = "/etc/berth/cri-server.toml")]
    pub config: PathBuf,
    /// What to do; `serve` when nothing is named
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the CRI on the configured socket until SIGTERM or SIGINT
    Serve,
    /// Administer images
    #[command(subcommand)]
    Image(image::Command),
    /// Check the configuration file and say what is wrong with it
    CheckConfig,
    /// Print completion code for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs a subcommand.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::serve(Config::load(&arguments.config)?)?,
        Command::Image(command) => image::run(command, &Config::load(&arguments.config)?)?,
        Command::CheckConfig => {
            Config::load(&arguments.config)?;
            writeln!(std::io::stdout(), "{}: good", arguments.config.display())?;
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "cri-server", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

//! One program, several plugins: the name it is called by says which.

use std::path::Path;
use std::process::ExitCode;

use cni_bridge::{install, plugin};

const USAGE: &str = "\
CNI plugins of Berth: bridge, host-local, ipvlan, loopback, macvlan, portmap, ptp, static, vlan.

usage: PLUGIN                                 as a link to this program: run that plugin
       cni-bridge PLUGIN                      run that plugin
       cni-bridge install DIR                 put this program and its links into DIR
       cni-bridge --help | --version

A plugin reads CNI_COMMAND and the other variables of the CNI specification, and its
configuration from standard input; called without CNI_COMMAND it says who it is.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let called = args.first().and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str());
    if let Some(plugin) = called.and_then(plugin::named) {
        return proto::cni::plugin::main(plugin);
    }
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["--help" | "-h" | "help"] => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        ["--version" | "-V"] => {
            println!("cni-bridge {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["install", dir] => match install::install(Path::new(dir)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let reason =
                    std::error::Error::source(&error).map(|why| format!(": {why}")).unwrap_or_default();
                eprintln!("cni-bridge: {error}{reason}");
                ExitCode::FAILURE
            }
        },
        [name] if plugin::named(name).is_some() => match plugin::named(name) {
            Some(plugin) => proto::cni::plugin::main(plugin),
            None => ExitCode::FAILURE,
        },
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

//! One program, several plugins: the name it is called by says which.

#![no_main]
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod start;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cni_bridge::{install, plugin, repair};

/// musl's own asks the kernel for memory at each turn.
#[global_allocator]
static MEMORY: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

const USAGE: &str = "\
CNI plugins of Berth: bandwidth, bridge, firewall, host-local, ipvlan, loopback, macvlan, portmap, ptp, static, tuning,
vlan.

usage: bridge, portmap, …                     as a link to this program: run that plugin
       cni-bridge PLUGIN                      run that plugin
       cni-bridge install DIR                 put this program and its links into DIR
       cni-bridge repair RECORD…              make lost nf_tables rules of attachments again, from the records that
                                              runtimes keep (/var/lib/cni/results, or single files of it), for those
                                              plugins that CNI_PATH, or the program's directory, leads to this program
       cni-bridge --help | --version

A plugin reads CNI_COMMAND and the other variables of the CNI specification, and its
configuration from standard input; called without CNI_COMMAND it says who it is.
";

/// What the program does; its exit status.
fn run(arguments: &[OsString]) -> u8 {
    let args: Vec<String> = arguments.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let called = args.first().and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str());
    if let Some(plugin) = called.and_then(plugin::named) {
        return proto::cni::plugin::main(plugin);
    }
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["--help" | "-h" | "help"] => {
            print!("{USAGE}");
            0
        }
        ["--version" | "-V"] => {
            println!("cni-bridge {}", env!("CARGO_PKG_VERSION"));
            0
        }
        ["install", dir] => match install::install(Path::new(dir)) {
            Ok(()) => 0,
            Err(error) => failed(&error),
        },
        ["repair", records @ ..] if !records.is_empty() => {
            let records: Vec<PathBuf> = records.iter().map(PathBuf::from).collect();
            let failures = repair::repair(&records, &search_path());
            failures.iter().fold(0, |_, error| failed(error))
        }
        [name] if plugin::named(name).is_some() => match plugin::named(name) {
            Some(plugin) => proto::cni::plugin::main(plugin),
            None => 1,
        },
        _ => {
            eprint!("{USAGE}");
            2
        }
    }
}

/// CNI_PATH, or else where this program is.
fn search_path() -> Vec<PathBuf> {
    let given = std::env::var("CNI_PATH").unwrap_or_default();
    let given: Vec<PathBuf> = given.split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect();
    if !given.is_empty() {
        return given;
    }
    let own = std::env::current_exe().ok();
    own.and_then(|program| Some(program.parent()?.to_owned())).into_iter().collect()
}

/// Says an error with its cause.
fn failed(error: &dyn std::error::Error) -> u8 {
    let reason = error.source().map(|why| format!(": {why}")).unwrap_or_default();
    eprintln!("cni-bridge: {error}{reason}");
    1
}

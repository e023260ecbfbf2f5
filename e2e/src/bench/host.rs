//! The machine and the programs that were measured: what a reader needs to compare two runs.

use anyhow::Result;
use serde::Serialize;

use crate::exec::Program;
use crate::paths;

/// The machine and the programs.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// First lines of what the programs say about their versions.
    pub programs: Vec<String>,
    /// `/proc/loadavg` before the first and after each round.
    pub load: Vec<String>,
}

impl Host {
    /// Looks.
    pub fn look() -> Result<Self> {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let cpus = std::thread::available_parallelism()?.get();
        let cri_server = paths::binary("cri-server").map(|path| path.display().to_string());
        let containerd = std::env::var("E2E_CONTAINERD").unwrap_or_else(|_| "containerd".to_owned());
        let programs = [cri_server.unwrap_or_default(), containerd, "runc".to_owned(), "crun".to_owned()];
        let programs = programs.iter().filter_map(|program| version(program)).collect();
        let mut host = Self { kernel, cpus, programs, load: Vec::new() };
        host.note_load();
        Ok(host)
    }

    /// Notes how busy the machine is.
    pub fn note_load(&mut self) {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        self.load.push(load.split(' ').take(3).collect::<Vec<_>>().join(" "));
    }
}

fn version(program: &str) -> Option<String> {
    let path = paths::in_path(program).unwrap_or_else(|| program.into());
    let said = Program::new(path).arg("--version").ok().ok()?;
    said.lines().next().map(str::to_owned)
}

//! Running another plugin's program (SPEC "Plugin Delegation").

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proto::cni::runtime::Output;
use proto::cni::{CniError, ErrorCode, Verb};

/// The most that is read of a plugin's output, in bytes.
const MAX_OUTPUT: u64 = 1 << 20;

/// What a plugin wrote.
#[derive(Debug, Clone, Default)]
pub struct Finished {
    status: Option<i32>,
    stdout: Vec<u8>,
}

impl Finished {
    /// As the runtime's side reads it.
    pub fn output<'a>(&'a self, plugin: &'a str) -> Output<'a> {
        Output { plugin, status: self.status, stdout: &self.stdout, stderr: b"" }
    }
}

/// The program of `plugin` in the first directory of `path` that has one.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] naming the directories.
pub fn find(plugin: &str, path: &[PathBuf]) -> Result<PathBuf, CniError> {
    let found = path.iter().map(|dir| dir.join(plugin)).find(|program| program.is_file());
    found.ok_or_else(|| {
        let problem = format!("no plugin {plugin:?} in CNI_PATH {path:?}");
        CniError::config("ipam.type", problem)
    })
}

/// Runs `program` for `verb` with this process's environment and `stdin`; its standard error is passed on.
///
/// # Errors
/// [`ErrorCode::IO_FAILURE`].
pub fn run(program: &Path, verb: Verb, stdin: &[u8]) -> Result<Finished, CniError> {
    let failed = |error: std::io::Error| {
        CniError::caused(ErrorCode::IO_FAILURE, format!("running plugin {}", program.display()), &error)
    };
    #[allow(clippy::disallowed_methods, reason = "delegation runs a program")]
    let mut child = Command::new(program)
        .env("CNI_COMMAND", verb.as_str())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    let mut stdout = Vec::new();
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let read = std::thread::scope(|scope| {
        // A plugin that never reads closes its end: what it says then matters, not that we could not finish.
        scope.spawn(move || input.map(|mut pipe| pipe.write_all(stdin)));
        output.map(|pipe| pipe.take(MAX_OUTPUT).read_to_end(&mut stdout)).transpose()
    });
    let status = child.wait().map_err(failed)?;
    read.map_err(failed)?;
    Ok(Finished { status: status.code(), stdout })
}

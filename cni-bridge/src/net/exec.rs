//! Running another plugin's program (SPEC "Plugin Delegation").

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

/// How often a program is started that somebody is still writing, and how long to wait in between.
const STARTS: u32 = 6;
const PAUSE: Duration = Duration::from_secs(1);

/// Starts a program; one that is being installed at this moment, once that is over.
#[allow(clippy::disallowed_methods, reason = "delegation runs a program")]
fn start(command: &mut Command) -> io::Result<Child> {
    for _ in 1..STARTS {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
    command.spawn()
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
    let mut command = Command::new(program);
    command
        .env("CNI_COMMAND", verb.as_str())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut child = start(&mut command).map_err(failed)?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_that_is_being_written_is_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("plugin");
        std::fs::copy("/bin/true", &program).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let writer = std::fs::File::options().append(true).open(&program).unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| run(&program, Verb::Del, b""));
            // Whether it has tried before or tries after this, it succeeds.
            std::thread::sleep(PAUSE / 4);
            drop(writer);
            assert_eq!(running.join().unwrap().unwrap().status, Some(0));
        });
    }
}

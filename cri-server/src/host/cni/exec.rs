//! Runs one plugin once: environment and configuration in, bounded output out (CNI specification, section 2).
//!
//! The plugin leads a process group of its own, and the group dies with the call: at the deadline, at an abort,
//! when the future is dropped. Knows nothing of networks.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::error::Cause;

/// More output than this is no result.
pub(super) const OUTPUT_LIMIT: usize = 1 << 20;
const LOG_LIMIT: usize = 64 << 10;
/// How long output is awaited after the plugin ended, when a process that it left holds its pipes.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a killed plugin may take to go.
const REAP: Duration = Duration::from_secs(5);

/// One run of a plugin.
#[derive(Debug)]
pub(super) struct Call {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(&'static str, OsString)>,
    pub stdin: Vec<u8>,
}

/// What a plugin answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs a plugin to its end, but not longer than `deadline` and not beyond an abort.
pub(super) async fn run(call: Call, deadline: Duration, abort: &CancellationToken) -> Result<Answer, Cause> {
    let mut plugin = Running(spawn(&call).await.map_err(Cause::Start)?);
    let outcome = tokio::select! {
        biased;
        () = abort.cancelled() => Err(Cause::Aborted),
        outcome = plugin.talk(&call.stdin) => outcome,
        () = tokio::time::sleep(deadline) => Err(Cause::TimedOut(deadline)),
    };
    if outcome.is_err() {
        plugin.kill();
        let _ = tokio::time::timeout(REAP, plugin.0.wait()).await;
    }
    outcome
}

/// The executable of a plugin type: the first in the directories, as libcni finds it.
pub(super) fn find(kind: &str, dirs: &[PathBuf]) -> Result<PathBuf, Cause> {
    let executable = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let found = dirs.iter().map(|dir| dir.join(kind)).find(|path| executable(path));
    found.ok_or_else(|| Cause::Missing { searched: dirs.to_vec() })
}

/// Starts the plugin. A file that is being replaced at this moment is tried again for a while.
async fn spawn(call: &Call) -> io::Result<Child> {
    let mut pause = Duration::from_millis(10);
    loop {
        let started = Command::new(&call.program)
            .args(&call.args)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| is_passed_on(name.as_encoded_bytes())))
            .envs(call.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        match started {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && pause.as_secs() < 2 => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            other => return other,
        }
    }
}

/// The daemon's environment reaches plugins, except what belongs to the daemon or to the protocol.
fn is_passed_on(name: &[u8]) -> bool {
    let own: [&[u8]; 4] = [b"CNI_", b"NOTIFY_SOCKET", b"WATCHDOG_", b"LISTEN_"];
    !own.iter().any(|prefix| name.starts_with(prefix))
}

/// A plugin, whose process group dies with it unless it ended by itself: a process that it left on purpose lives on.
struct Running(Child);

impl Running {
    /// Passes the configuration and collects the output until the plugin has ended.
    async fn talk(&mut self, input: &[u8]) -> Result<Answer, Cause> {
        let (stdin, stdout, stderr) = (self.0.stdin.take(), self.0.stdout.take(), self.0.stderr.take());
        let (mut out, mut log) = (Vec::new(), Vec::new());
        let status = {
            let mut pipes = pin!(async {
                tokio::try_join!(
                    write_all(stdin, input),
                    read_output(stdout, &mut out),
                    read_log(stderr, &mut log)
                )
            });
            tokio::select! {
                closed = pipes.as_mut() => {
                    closed?;
                    self.0.wait().await.map_err(Cause::Pipe)?
                }
                status = self.0.wait() => {
                    if let Ok(closed) = tokio::time::timeout(DRAIN, pipes).await {
                        closed?;
                    }
                    status.map_err(Cause::Pipe)?
                }
            }
        };
        Ok(Answer { status, stdout: out, stderr: log })
    }

    /// Kills the group while its leader was not reaped, so that the number cannot be anybody else's.
    fn kill(&self) {
        let leader = self.0.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(leader) = leader {
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A plugin that does not read its configuration is not wrong.
async fn write_all(pipe: Option<impl AsyncWriteExt + Unpin>, input: &[u8]) -> Result<(), Cause> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    match pipe.write_all(input).await {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Cause::Pipe(error)),
        _ => Ok(()),
    }
}

async fn read_output(pipe: Option<impl AsyncRead + Unpin>, out: &mut Vec<u8>) -> Result<(), Cause> {
    let Some(pipe) = pipe else { return Ok(()) };
    pipe.take(OUTPUT_LIMIT as u64 + 1).read_to_end(out).await.map_err(Cause::Pipe)?;
    if out.len() > OUTPUT_LIMIT { Err(Cause::Flood(OUTPUT_LIMIT)) } else { Ok(()) }
}

/// Reads everything, so that the plugin never waits, and keeps the beginning.
async fn read_log(pipe: Option<impl AsyncRead + Unpin>, log: &mut Vec<u8>) -> Result<(), Cause> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut block = [0u8; 4096];
    loop {
        let count = pipe.read(&mut block).await.map_err(Cause::Pipe)?;
        if count == 0 {
            return Ok(());
        }
        log.extend_from_slice(&block[..count.min(LOG_LIMIT - log.len())]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_daemons_own_variables_are_kept_back() {
        for (name, expect) in [("PATH", true), ("HOME", true), ("CNI_ARGS", false), ("NOTIFY_SOCKET", false)]
        {
            assert_eq!(is_passed_on(name.as_bytes()), expect, "{name}");
        }
    }

    #[test]
    fn plugins_are_executables_in_the_first_directory_that_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ["a", "b", "c"].map(|name| dir.path().join(name));
        for (index, (name, mode)) in [("x", 0o644), ("x", 0o755), ("x", 0o755)].into_iter().enumerate() {
            std::fs::create_dir(&dirs[index]).unwrap();
            std::fs::write(dirs[index].join(name), "").unwrap();
            std::fs::set_permissions(dirs[index].join(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        assert_eq!(find("x", &dirs).unwrap(), dirs[1].join("x"));
        let missing = find("y", &dirs[..1]).unwrap_err().to_string();
        assert_eq!(missing, format!("no such executable in {}", dirs[0].display()));
    }
}

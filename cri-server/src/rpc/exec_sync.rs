//! ExecSync: runs a command in a container and returns what it printed and how it ended.
//!
//! Output is capped and the rest drained, so that a command that prints without end neither blocks nor grows the
//! daemon. A background child that keeps the output open delays the answer by a bounded drain, no more. When the client
//! goes, the call is dropped: the command is killed, and the readers of its output end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use proto::cri::{ExecSyncRequest, ExecSyncResponse};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::monitor::ExecStdio;
use crate::steps::command::{self, Command, Console};
use crate::steps::cri_config::{invalid, missing};

/// Most bytes returned of both streams together: what fits into a message that clients of the CRI take.
const OUTPUT_LIMIT: usize = (16 << 20) - 4096;
/// What the errors may have of it, however much the output is.
const ERRORS_SHARE: usize = 1 << 20;
/// How long output is awaited after the command has ended.
const DRAIN: Duration = Duration::from_millis(500);
/// How long a command may run whose request names no timeout.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs a command to its end, or to the request's timeout.
pub async fn exec_sync(daemon: &Arc<Daemon>, request: ExecSyncRequest) -> Result<ExecSyncResponse, Error> {
    if request.cmd.is_empty() {
        return Err(missing("cmd"));
    }
    let seconds = u64::try_from(request.timeout)
        .map_err(|_| invalid("timeout", format!("expected 0 or more seconds, got {}", request.timeout)))?;
    let (container, monitor) = command::running(daemon, &request.container_id)?;
    let limit = if seconds == 0 { FOREVER } else { Duration::from_secs(seconds).min(FOREVER) };
    let deadline = Instant::now() + limit;
    let mut command = Command::prepare(daemon, &container, monitor, request.cmd, Console::Absent).await?;
    let doing = || format!("make the pipes of an exec in container {}", container.id);
    let (stdout, child_stdout) = output_pipe().map_err(Error::host(doing()))?;
    let (stderr, child_stderr) = output_pipe().map_err(Error::host(doing()))?;
    let stdin = OwnedFd::from(std::fs::File::open("/dev/null").map_err(Error::host("open /dev/null"))?);
    let stdio = ExecStdio::Fds([stdin, child_stdout, child_stderr]);
    let ended = watch::Sender::new(false);
    let stdout = tokio::spawn(collect(stdout, ended.subscribe()));
    let stderr = tokio::spawn(collect(stderr, ended.subscribe()));
    let run = async {
        command.start(stdio).await?;
        command.exit_code().await
    };
    let exit_code = match tokio::time::timeout_at(deadline, run).await {
        Ok(ended) => ended,
        Err(_) => {
            command.kill().await;
            Err(Error::DeadlineExceeded { stage: "the command".into(), seconds })
        }
    };
    ended.send_replace(true);
    let (stdout, stderr) = tokio::join!(stdout, stderr);
    let (mut stdout, mut stderr) = (stdout.unwrap_or_default(), stderr.unwrap_or_default());
    fit(&mut stdout, &mut stderr);
    Ok(ExecSyncResponse { exit_code: exit_code?, stdout, stderr })
}

/// Cuts what is too much for one answer.
fn fit(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) {
    let beside = OUTPUT_LIMIT - stdout.len().min(OUTPUT_LIMIT - ERRORS_SHARE);
    stderr.truncate(beside);
    stdout.truncate(OUTPUT_LIMIT - stderr.len());
}

fn output_pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

/// Reads to the end, or until `DRAIN` after the command's end; keeps at most `OUTPUT_LIMIT` bytes.
async fn collect(mut pipe: pipe::Receiver, mut ended: watch::Receiver<bool>) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0u8; 64 << 10];
    let drained = async {
        if ended.wait_for(|ended| *ended).await.is_ok() {
            tokio::time::sleep(DRAIN).await;
        }
    };
    tokio::pin!(drained);
    loop {
        tokio::select! {
            // First, since a child that goes on printing always has something to be read.
            biased;
            () = &mut drained => return kept,
            read = pipe.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return kept,
                Ok(length) => {
                    let room = OUTPUT_LIMIT - kept.len();
                    kept.extend_from_slice(&buffer[..length.min(room)]);
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_fit_into_an_answer() {
        let check = |output: usize, errors: usize, expect: (usize, usize)| {
            let (mut stdout, mut stderr) = (vec![0; output], vec![0; errors]);
            fit(&mut stdout, &mut stderr);
            assert_eq!((stdout.len(), stderr.len()), expect, "{output} {errors}");
        };
        check(3, 5, (3, 5));
        check(OUTPUT_LIMIT, 0, (OUTPUT_LIMIT, 0));
        check(0, OUTPUT_LIMIT, (0, OUTPUT_LIMIT));
        check(OUTPUT_LIMIT, 7, (OUTPUT_LIMIT - 7, 7));
        check(OUTPUT_LIMIT, OUTPUT_LIMIT, (OUTPUT_LIMIT - ERRORS_SHARE, ERRORS_SHARE));
        check(9, OUTPUT_LIMIT, (9, OUTPUT_LIMIT - 9));
    }
}

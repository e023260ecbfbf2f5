//! A command with a client at its streams.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::copy;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::monitor::ExecStdio;
use crate::spec::oci::ConsoleSize;
use crate::steps::command::{self, Command, Console};
use crate::streaming::session::{Exec, Streams, TerminalSize};

/// How long the first size of a client's terminal is awaited: programs look at it when they start.
const FIRST_SIZE: Duration = Duration::from_millis(50);

/// Runs a command until it has ended and its output is drained. Dropping the future kills it.
pub async fn exec(daemon: &Arc<Daemon>, session: Exec, mut streams: Streams) -> Result<i32, Error> {
    let (container, monitor) = command::running(daemon, &session.container_id)?;
    let doing = || format!("make the streams of an exec in container {}", container.id);
    let (size, console) = match session.wiring.tty {
        true => {
            let size = first_size(&mut streams.resize).await;
            let console = size.map(|size| ConsoleSize { height: size.height, width: size.width });
            (size, Console::Present(console))
        }
        false => (None, Console::Absent),
    };
    let mut command = Command::prepare(daemon, &container, monitor, session.command, console).await?;
    if session.wiring.tty {
        let lost = || Error::Internal("the OCI runtime sent no terminal".into());
        let master = command.start(ExecStdio::Terminal).await?.ok_or_else(lost)?;
        return with_terminal(command, streams, master, size).await.map_err(Error::host(doing()))?;
    }
    with_pipes(command, streams).await.map_err(Error::host(doing()))?
}

async fn with_pipes(mut command: Command, streams: Streams) -> std::io::Result<Result<i32, Error>> {
    let Streams { stdin, stdout, stderr, .. } = streams;
    let (input, child_stdin) = match stdin.is_some() {
        true => copy::input_pipe().map(|(to, child)| (Some(to), child))?,
        false => (None, null()?),
    };
    let (from_stdout, child_stdout) = copy::output_pipe()?;
    let (from_stderr, child_stderr) = copy::output_pipe()?;
    // Nobody reads what is not wired.
    let child_stdout = if stdout.is_some() { child_stdout } else { null()? };
    let child_stderr = if stderr.is_some() { child_stderr } else { null()? };
    if let Err(error) = command.start(ExecStdio::Fds([child_stdin, child_stdout, child_stderr])).await {
        return Ok(Err(error));
    }
    let ended = watch::Sender::new(None);
    let outputs = async {
        tokio::join!(
            copy::output(from_stdout, stdout, ended.subscribe()),
            copy::output(from_stderr, stderr, ended.subscribe()),
        )
    };
    tokio::select! {
        (code, _drained) = async { tokio::join!(exit_code(&mut command, &ended), outputs) } => Ok(code),
        never = copy::input(stdin, input) => match never {},
    }
}

async fn with_terminal(
    mut command: Command,
    streams: Streams,
    master: OwnedFd,
    size: Option<TerminalSize>,
) -> std::io::Result<Result<i32, Error>> {
    let Streams { stdin, stdout, resize, .. } = streams;
    if let Some(size) = size {
        copy::set_size(&master, size)?;
    }
    let from = copy::receiver(master.try_clone()?)?;
    let to = copy::sender(master.try_clone()?)?;
    let ended = watch::Sender::new(None);
    // A terminal that nobody reads would stop its process.
    let stdout = stdout.unwrap_or_else(|| Box::new(tokio::io::sink()));
    let output = copy::output(from, Some(stdout), ended.subscribe());
    tokio::select! {
        (code, ()) = async { tokio::join!(exit_code(&mut command, &ended), output) } => Ok(code),
        never = copy::input(stdin, Some(to)) => match never {},
        never = copy::resize(resize, Some(master)) => match never {},
    }
}

async fn exit_code(command: &mut Command, ended: &watch::Sender<Option<Instant>>) -> Result<i32, Error> {
    let code = command.exit_code().await;
    ended.send_replace(Some(Instant::now()));
    code
}

/// The newest of the sizes that are told at once.
async fn first_size(sizes: &mut mpsc::Receiver<TerminalSize>) -> Option<TerminalSize> {
    let mut newest = tokio::time::timeout(FIRST_SIZE, sizes.recv()).await.ok().flatten()?;
    while let Ok(size) = sizes.try_recv() {
        newest = size;
    }
    Some(newest)
}

fn null() -> std::io::Result<OwnedFd> {
    Ok(std::fs::File::options().read(true).write(true).open("/dev/null")?.into())
}

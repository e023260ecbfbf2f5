//! Programs that the harness starts: with a deadline, with their output kept, ended by pid. The only place that does.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::wait;

/// A program with its arguments and environment, not yet started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    deadline: Duration,
}

/// What an ended program said.
#[derive(Debug)]
pub struct Ended {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
}

impl Program {
    /// A program by path, or by name through PATH.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let deadline = Duration::from_secs(60);
        Self { path: path.into(), args: Vec::new(), env: Vec::new(), dir: None, deadline }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// Gives the program another working directory than the caller's.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Ends the program by SIGKILL when [`Program::run`] takes longer (default 60 s).
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs to the end, whatever the exit status.
    pub fn run(&self) -> Result<Ended> {
        let stdout = tempfile::tempfile()?;
        let stderr = tempfile::tempfile()?;
        let mut running =
            self.spawn(Stdio::null(), stdout.try_clone()?.into(), stderr.try_clone()?.into())?;
        let status = running.wait(self.deadline).with_context(|| self.to_string())?;
        Ok(Ended { status, stdout: read_back(stdout)?, stderr: read_back(stderr)? })
    }

    /// Runs to the end and returns the standard output; a failure carries both outputs.
    pub fn ok(&self) -> Result<String> {
        let ended = self.run()?;
        if !ended.status.success() {
            bail!("{self} ended with {}:\n{}{}", ended.status, ended.stdout, ended.stderr);
        }
        Ok(ended.stdout)
    }

    /// Runs to the end and drops what it says; a failure is an error.
    pub fn silent(&self) -> Result<()> {
        let mut running = self.spawn(Stdio::null(), Stdio::null(), Stdio::null())?;
        let status = running.wait(self.deadline).with_context(|| self.to_string())?;
        if !status.success() {
            bail!("{self} ended with {status}");
        }
        Ok(())
    }

    /// Starts in the background; both outputs are appended to `log`.
    pub fn start(&self, log: &Path) -> Result<Running> {
        let log = File::options().create(true).append(true).open(log)?;
        self.spawn(Stdio::null(), log.try_clone()?.into(), log.into())
    }

    /// Starts with pipes to standard input and output.
    pub fn start_piped(&self) -> Result<Running> {
        self.spawn(Stdio::piped(), Stdio::piped(), Stdio::inherit())
    }

    /// Starts with these descriptors.
    pub fn start_with(&self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Running> {
        self.spawn(stdin, stdout, stderr)
    }

    /// Becomes the program. Returns only the reason why that failed.
    #[must_use]
    pub fn replace(&self) -> std::io::Error {
        self.command().exec()
    }

    fn spawn(&self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Running> {
        let mut command = self.command();
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let child = command.spawn().with_context(|| format!("start {self}"))?;
        Ok(Running { child })
    }

    #[allow(clippy::disallowed_methods, reason = "this module is where the harness starts programs")]
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.args).envs(self.env.iter().map(|(k, v)| (k, v)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", arg.to_string_lossy()))
    }
}

fn read_back(mut file: File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A program in the background; ended by SIGKILL and reaped when dropped.
#[derive(Debug)]
pub struct Running {
    /// The child, for its pipes.
    pub child: Child,
}

impl Running {
    /// Process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid(), signal).with_context(|| format!("signal {signal:?} to {:?}", self.pid()))
    }

    /// Waits for the end; past the deadline the program is killed and that is an error.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let deadline = wait::scaled(deadline);
        let end = Instant::now() + deadline;
        // One that was seen to end before has no descriptor any more.
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).context("watch the child")?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.child.kill()?;
                self.child.wait()?;
                bail!("did not end within {deadline:?}");
            }
            let timeout = Timespec::try_from(left)?;
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("ended with {status}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

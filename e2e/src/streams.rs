//! Clients of a node's streams: crictl with pipes, and both ends of a forwarded port.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::case::Case;
use crate::exec::{Program, Running};
use crate::{ns, paths};

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// crictl on the case's node; the arguments are the words of `line`.
pub fn crictl(case: &Case, line: &str) -> Result<Program> {
    let endpoint = format!("unix://{}", case.node.dirs().socket().display());
    let program = case.node.program(paths::peer("crictl")?);
    let program = program.args(["--runtime-endpoint", &endpoint, "--timeout", "60s"]);
    Ok(program.args(line.split(' ')))
}

/// Runs with `input` as standard input: the exit code (-1 where a signal ended it), both outputs.
pub fn piped(program: &Program, input: &[u8]) -> Result<(i32, String, String)> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut running =
        program.start_with(Stdio::piped(), stdout.try_clone()?.into(), stderr.try_clone()?.into())?;
    running.child.stdin.take().context("no pipe")?.write_all(input)?;
    let status = running.wait(PATIENCE)?;
    Ok((status.code().unwrap_or(-1), read_back(&mut stdout)?, read_back(&mut stderr)?))
}

fn read_back(file: &mut File) -> Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// A program in the background, spoken with line by line.
#[derive(Debug)]
pub struct Attached {
    /// The program.
    pub running: Running,
    lines: BufReader<ChildStdout>,
}

impl Attached {
    /// Starts it.
    pub fn start(program: &Program) -> Result<Self> {
        let mut running = program.start_piped()?;
        let lines = BufReader::new(running.child.stdout.take().context("no pipe")?);
        Ok(Self { running, lines })
    }

    /// Writes to its standard input.
    pub fn enter(&mut self, line: &str) -> Result<()> {
        Ok(self.running.child.stdin.as_mut().context("no pipe")?.write_all(line.as_bytes())?)
    }

    /// Reads the next line, which has to be `text`.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        ensure!(line.trim_end() == text, "expected {text:?}, got {line:?}");
        Ok(())
    }
}

/// A server in the network of a process that reads to the end and answers with what it read, backwards.
pub fn reverse(pid: u32, address: IpAddr, port: u16) -> Result<()> {
    let listener = ns::in_network_of(pid, move || Ok(TcpListener::bind((address, port))?))?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes)?;
                bytes.reverse();
                stream.write_all(&bytes)
            });
        }
    });
    Ok(())
}

/// A connection to a port of the node's loopback.
pub fn connect(case: &Case, port: u16) -> Result<TcpStream> {
    let stream = ns::in_network_of(case.node.holder_pid(), move || {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?)
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends the last bytes and reads to the end.
pub fn finish(mut stream: TcpStream, last: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(last)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

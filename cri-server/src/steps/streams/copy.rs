//! Bytes between a client and a process. A slow side holds the other one up and nobody else; memory is one chunk.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::streaming::session::TerminalSize;

/// What a client reads.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;
/// What a client writes.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;

/// Bytes copied at once.
const CHUNK: usize = 32 << 10;
/// How long output is awaited after the process has ended: something else may keep it open.
const DRAIN: Duration = Duration::from_millis(500);
/// Bytes that are taken after that: more than a pipe holds, so that all that the process itself wrote is among them.
const DRAIN_BYTES: usize = 1 << 20;

/// A pipe: the end that this process reads, and the other one.
pub fn output_pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((receiver(reader)?, writer))
}

/// A pipe: the end that this process writes, and the other one.
pub fn input_pipe() -> std::io::Result<(pipe::Sender, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((sender(writer)?, reader))
}

/// The reading side of a descriptor: of a pipe, or of a terminal's master, which is read the same way.
pub fn receiver(fd: OwnedFd) -> std::io::Result<pipe::Receiver> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    pipe::Receiver::from_owned_fd_unchecked(fd)
}

/// The writing side of a descriptor: of a pipe, or of a terminal's master.
pub fn sender(fd: OwnedFd) -> std::io::Result<pipe::Sender> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    pipe::Sender::from_owned_fd_unchecked(fd)
}

/// Copies a process's output until it ends, or, where something else keeps it open, until the process has ended and
/// the output is drained. `ended` says when the process did. Ends the client's stream then.
pub async fn output(
    mut from: impl AsyncRead + Unpin,
    to: Option<Output>,
    mut ended: watch::Receiver<Option<Instant>>,
) {
    let Some(mut to) = to else { return };
    let mut buffer = vec![0; CHUNK];
    let mut late = 0;
    while late < DRAIN_BYTES {
        let drained = ended.borrow().is_some_and(|at| at.elapsed() > DRAIN);
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            () = end_of_drain(&mut ended) => break,
        };
        let Ok(length @ 1..) = read else { break };
        if to.write_all(&buffer[..length]).await.is_err() {
            // The process learns it from its next write.
            return;
        }
        late += if drained { length } else { 0 };
    }
    let _client_gone = to.shutdown().await;
}

async fn end_of_drain(ended: &mut watch::Receiver<Option<Instant>>) {
    let at = ended.wait_for(Option::is_some).await.map(|at| *at);
    match at {
        Ok(Some(at)) => tokio::time::sleep_until(at + DRAIN).await,
        // Without the one who would say it, only the stream's own end counts.
        _ => std::future::pending().await,
    }
}

/// Copies a client's input, and ends that of the process with it. What a process does not want is read and dropped:
/// a client must not wait for ever to have it taken. Never returns; the session ends for other reasons.
pub async fn input(from: Option<Input>, to: Option<pipe::Sender>) -> Infallible {
    if let Some(mut from) = from {
        if let Some(mut to) = to {
            let _ended = copy(&mut from, &mut to).await;
        }
        let _dropped = copy(&mut from, &mut tokio::io::sink()).await;
    }
    std::future::pending().await
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            length => to.write_all(&buffer[..length]).await?,
        }
    }
}

/// Gives a terminal each size that its client tells. Never returns.
pub async fn resize(mut sizes: mpsc::Receiver<TerminalSize>, terminal: Option<OwnedFd>) -> Infallible {
    while let Some(size) = sizes.recv().await {
        let Some(terminal) = &terminal else { continue };
        if let Err(error) = set_size(terminal, size) {
            tracing::debug!(%error, "a terminal keeps its size");
        }
    }
    std::future::pending().await
}

/// Sets the size of the terminal behind a master.
pub fn set_size(terminal: &OwnedFd, size: TerminalSize) -> std::io::Result<()> {
    let size =
        rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn client() -> (Output, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(64);
        (Box::new(near), far)
    }

    #[tokio::test]
    async fn output_ends_with_the_process_though_somebody_keeps_it_open() {
        let (from, kept) = output_pipe().unwrap();
        let (to, mut far) = client();
        let mut writer = std::fs::File::from(kept.try_clone().unwrap());
        writer.write_all(&[b'x'; 4096]).unwrap();
        let ended = watch::Sender::new(Some(Instant::now()));
        let copied = tokio::spawn(output(from, Some(to), ended.subscribe()));
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen.len(), 4096);
        copied.await.unwrap();
        drop(kept);
    }

    #[tokio::test]
    async fn a_writer_without_end_does_not_keep_the_session() {
        let (to, mut far) = client();
        let drain = tokio::spawn(async move { tokio::io::copy(&mut far, &mut tokio::io::sink()).await });
        let ended = watch::Sender::new(Some(Instant::now()));
        output(tokio::io::repeat(b'y'), Some(to), ended.subscribe()).await;
        assert!(drain.await.unwrap().unwrap() > 0);
    }

    #[tokio::test]
    async fn input_ends_with_the_clients() {
        let (to, reader) = input_pipe().unwrap();
        let from: Input = Box::new(&b"all of it"[..]);
        let feeding = tokio::spawn(input(Some(from), Some(to)));
        let mut seen = String::new();
        receiver(reader).unwrap().read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "all of it");
        feeding.abort();
    }

    #[tokio::test]
    async fn unwanted_input_is_taken_and_dropped() {
        let (to, reader) = input_pipe().unwrap();
        drop(reader);
        let (near, mut client) = tokio::io::duplex(64);
        let feeding = tokio::spawn(input(Some(Box::new(near)), Some(to)));
        client.write_all(&[b'x'; 100_000]).await.unwrap();
        feeding.abort();
    }
}

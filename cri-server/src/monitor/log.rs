//! The CRI log file of one container: lines, splitting, rotation, and what happens when the disk is full.
//!
//! A line is `<RFC 3339 time> <stdout|stderr> <P|F> <content>\n`. Content longer than the limit is split into `P`
//! pieces and ends with an `F`. A last line without a newline is an `F` too: by the format a record ends with `F`,
//! and log collectors drop a `P` whose `F` never comes; the price is that a reader shows one newline more than the
//! container wrote. On a terminal the carriage return before a newline is the line discipline's and is dropped;
//! everywhere else content is kept byte by byte.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use super::clock::Stamp;

/// Collected output is written when it reaches this many bytes, and at the end of a batch.
const FLUSH_AT: usize = 32 << 10;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamName {
    /// Also everything from a terminal.
    Stdout,
    /// Never from a terminal.
    Stderr,
}

/// How the newlines of a stream are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newlines {
    /// As the container wrote them.
    Verbatim,
    /// Made of `\r\n` by a terminal.
    Terminal,
}

/// The file, or nothing where the container's output is discarded.
#[derive(Debug)]
pub struct LogFile {
    target: Option<(PathBuf, File)>,
    /// The last write ended within a line.
    torn: bool,
    bytes_lost: u64,
    batch: Vec<u8>,
}

impl LogFile {
    /// Opens or makes the file at `path`.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let target = match path {
            Some(path) => {
                let file = open_log(&path)?;
                Some((path, file))
            }
            None => None,
        };
        Ok(Self { target, torn: false, bytes_lost: 0, batch: Vec::new() })
    }

    /// Opens the path anew. On success the old file gets no more lines; on failure it stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        if let Some((path, file)) = &mut self.target {
            *file = open_log(path)?;
            self.torn = false;
        }
        Ok(())
    }

    /// Bytes that could not be written.
    pub fn bytes_lost(&self) -> u64 {
        self.bytes_lost
    }

    /// Writes what was collected, and gives back the memory of a large batch.
    pub fn flush(&mut self) {
        self.write_batch();
        self.batch.shrink_to(4096);
    }

    fn write_batch(&mut self) {
        let Some((_, file)) = &mut self.target else { return self.batch.clear() };
        let mut rest = self.batch.as_slice();
        if self.torn && !rest.is_empty() && file.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        while !rest.is_empty() && !self.torn {
            match file.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let written = self.batch.len() - rest.len();
        if written > 0 && !rest.is_empty() {
            self.torn = self.batch[written - 1] != b'\n';
        }
        self.bytes_lost += rest.len() as u64;
        self.batch.clear();
    }

    fn line(&mut self, head: (Stamp, StreamName), tag: u8, content: [&[u8]; 2]) {
        if self.target.is_none() {
            return;
        }
        let (stamp, stream) = head;
        self.batch.extend_from_slice(stamp.as_bytes());
        self.batch.extend_from_slice(match stream {
            StreamName::Stdout => b" stdout ",
            StreamName::Stderr => b" stderr ",
        });
        self.batch.extend_from_slice(&[tag, b' ']);
        content.iter().for_each(|part| self.batch.extend_from_slice(part));
        self.batch.push(b'\n');
        if self.batch.len() >= FLUSH_AT {
            self.write_batch();
        }
    }
}

/// Never follows a link, never blocks on a FIFO, takes nothing but a regular file.
fn open_log(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    let guards = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::open(path, flags | guards, Mode::from_raw_mode(0o640))?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(File::from(fd))
}

/// Cuts one stream into lines and keeps the line that is not complete yet.
#[derive(Debug)]
pub struct LineSplitter {
    stream: StreamName,
    newlines: Newlines,
    limit: usize,
    pending: Vec<u8>,
}

impl LineSplitter {
    /// A splitter for one stream; `limit` bytes of content per line, at least one.
    pub fn new(stream: StreamName, newlines: Newlines, limit: u32) -> Self {
        Self { stream, newlines, limit: (limit as usize).max(1), pending: Vec::new() }
    }

    /// Which stream this is.
    pub fn stream(&self) -> StreamName {
        self.stream
    }

    /// Adds what was read to the log's batch.
    pub fn push(&mut self, mut bytes: &[u8], stamp: Stamp, log: &mut LogFile) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let rest = self.pieces(&bytes[..end], stamp, log);
            self.full_line(rest, stamp, log);
            bytes = &bytes[end + 1..];
        }
        let rest = self.pieces(bytes, stamp, log);
        self.pending.extend_from_slice(rest);
    }

    /// Ends the line that the stream left open.
    pub fn finish(&mut self, stamp: Stamp, log: &mut LogFile) {
        if !self.pending.is_empty() {
            self.full_line(&[], stamp, log);
        }
    }

    /// Writes `P` lines until what is left fits into one line.
    fn pieces<'a>(&mut self, mut bytes: &'a [u8], stamp: Stamp, log: &mut LogFile) -> &'a [u8] {
        while self.pending.len() + bytes.len() > self.limit {
            let (piece, rest) = bytes.split_at(self.limit - self.pending.len());
            log.line((stamp, self.stream), b'P', [&self.pending, piece]);
            self.pending.clear();
            bytes = rest;
        }
        bytes
    }

    fn full_line(&mut self, rest: &[u8], stamp: Stamp, log: &mut LogFile) {
        let (mut start, mut end) = (self.pending.as_slice(), rest);
        if self.newlines == Newlines::Terminal {
            match end.is_empty() {
                true => start = start.strip_suffix(b"\r").unwrap_or(start),
                false => end = end.strip_suffix(b"\r").unwrap_or(end),
            }
        }
        log.line((stamp, self.stream), b'F', [start, end]);
        self.pending = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: &str = "1970-01-01T00:00:00.000000000Z";

    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.strip_prefix(STAMP).unwrap_or("?").trim_start().to_owned()).collect()
    }

    #[test]
    fn streams_become_lines() {
        let check = |newlines, chunks: &[&str], expect: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let mut log = LogFile::open(Some(path.clone())).unwrap();
            let mut splitter = LineSplitter::new(StreamName::Stdout, newlines, 4);
            chunks.iter().for_each(|chunk| splitter.push(chunk.as_bytes(), Stamp::at(0), &mut log));
            splitter.finish(Stamp::at(0), &mut log);
            log.flush();
            assert_eq!(lines(&path), expect, "{chunks:?}");
        };
        check(Newlines::Verbatim, &["a\nb", "c\n"], &["stdout F a", "stdout F bc"]);
        check(Newlines::Verbatim, &["\n\n"], &["stdout F ", "stdout F "]);
        check(Newlines::Verbatim, &["abcd\n"], &["stdout F abcd"]);
        check(Newlines::Verbatim, &["abcd", "\n"], &["stdout F abcd"]);
        check(Newlines::Verbatim, &["abcde\n"], &["stdout P abcd", "stdout F e"]);
        check(
            Newlines::Verbatim,
            &["ab", "cdefghij", "k\n"],
            &["stdout P abcd", "stdout P efgh", "stdout F ijk"],
        );
        check(Newlines::Verbatim, &["end"], &["stdout F end"]);
        check(Newlines::Verbatim, &["a\r\n"], &["stdout F a\r"].map(|l| l.trim_end()));
        check(Newlines::Terminal, &["ab\r", "\n"], &["stdout F ab"]);
        check(Newlines::Terminal, &["a\rb\r\n"], &["stdout F a\rb"]);
    }

    #[test]
    fn content_is_kept_byte_by_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(Some(path.clone())).unwrap();
        let content: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
        let mut splitter = LineSplitter::new(StreamName::Stderr, Newlines::Verbatim, 16384);
        splitter.push(&[&content[..], b"\n"].concat(), Stamp::at(0), &mut log);
        log.flush();
        let expect = [STAMP.as_bytes(), b" stderr F ", &content, b"\n"].concat();
        assert_eq!(std::fs::read(&path).unwrap(), expect);
    }

    #[test]
    fn only_regular_files_are_logs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        for name in ["link", "fifo", "dir", "missing/log"] {
            assert!(LogFile::open(Some(at(name))).is_err(), "{name}");
        }
        assert!(!at("target").exists());
    }

    #[test]
    fn after_a_reopen_the_old_file_gets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let mut log = LogFile::open(Some(path.clone())).unwrap();
        let mut splitter = LineSplitter::new(StreamName::Stdout, Newlines::Verbatim, 99);
        splitter.push(b"one\ntw", Stamp::at(0), &mut log);
        log.flush();
        std::fs::rename(&path, &old).unwrap();
        log.reopen().unwrap();
        splitter.push(b"o\n", Stamp::at(0), &mut log);
        log.flush();
        assert_eq!(
            (lines(&old), lines(&path)),
            (vec!["stdout F one".into()], vec!["stdout F two".to_string()])
        );
    }

    #[test]
    fn a_full_disk_loses_output_and_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(Some(path.clone())).unwrap();
        let mut splitter = LineSplitter::new(StreamName::Stdout, Newlines::Verbatim, 99);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut log.target.as_mut().unwrap().1, full);
        splitter.push(b"lost\n", Stamp::at(0), &mut log);
        log.flush();
        assert!(log.bytes_lost() > 0);
        log.target.as_mut().unwrap().1 = good;
        splitter.push(b"kept\n", Stamp::at(0), &mut log);
        log.flush();
        assert_eq!(lines(&path), ["stdout F kept"]);
    }
}

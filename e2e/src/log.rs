//! CRI log files: `<RFC 3339 time> <stream> <F|P> <content>` per line.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// One whole line of a container: partial pieces are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339 time of the last piece.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Content without the line end.
    pub content: String,
}

/// Reads a log file. A line that the format does not allow is an error that names it.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read the log {}", path.display()))?;
    parse(&text)
}

/// Takes log text apart. A raw line without its end is still being written, and left out; the last pieces of a stream
/// that no end follows are a line too.
pub fn parse(text: &str) -> Result<Vec<Line>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut lines = Vec::new();
    let mut pending = [String::new(), String::new()];
    let mut last_time = "";
    for (number, raw) in whole.split('\n').enumerate().filter(|_| !whole.is_empty()) {
        let mut parts = raw.splitn(4, ' ');
        let (Some(time), Some(stream), Some(tag), Some(content)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            bail!("log line {} is not in CRI format: {raw:?}", number + 1);
        };
        let slot = match stream {
            "stdout" => 0,
            "stderr" => 1,
            _ => bail!("log line {} has an unknown stream: {raw:?}", number + 1),
        };
        pending[slot].push_str(content);
        match tag {
            "P" => {}
            "F" => lines.push(Line {
                time: time.to_owned(),
                stream: stream.to_owned(),
                content: std::mem::take(&mut pending[slot]),
            }),
            _ => bail!("log line {} has an unknown tag: {raw:?}", number + 1),
        }
        last_time = time;
    }
    for (stream, content) in
        ["stdout", "stderr"].into_iter().zip(pending).filter(|(_, piece)| !piece.is_empty())
    {
        lines.push(Line { time: last_time.to_owned(), stream: stream.to_owned(), content });
    }
    Ok(lines)
}

/// Texts of the log files in a directory with one log and what was rotated away from it, the oldest first.
pub fn rotated(dir: &Path) -> Result<Vec<String>> {
    let mut names = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    // `0.log.<time>`, `0.log.<time>.gz`, and at last `0.log`, which is the newest.
    names.sort_by_key(|path| (path.extension().is_some_and(|ext| ext == "log"), path.clone()));
    let read = |path: &Path| -> Result<String> {
        let bytes = std::fs::read(path)?;
        let mut text = String::new();
        match path.extension() {
            Some(ext) if ext == "gz" => flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text)?,
            _plain => bytes.as_slice().read_to_string(&mut text)?,
        };
        Ok(text)
    };
    names.iter().map(|path| read(path).with_context(|| path.display().to_string())).collect()
}

/// What a run of the writer program left in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Lines from sequence 0 on.
    pub lines: u64,
    /// Longest time between two neighbouring lines, by the writer's own clock, in nanoseconds.
    pub longest_gap: u64,
}

/// Checks that the writer's lines are complete and in order: none missing, none doubled.
pub fn check_written(lines: &[Line]) -> Result<Written> {
    let mut written = Written { lines: 0, longest_gap: 0 };
    let mut before = None;
    for line in lines {
        let (sequence, time) = line.content.split_once(' ').context("not a writer's line")?;
        let (sequence, time): (u64, u64) = (sequence.parse()?, time.parse()?);
        if sequence != written.lines {
            bail!("line {sequence} follows line {:?}", written.lines.checked_sub(1));
        }
        written.longest_gap = written.longest_gap.max(before.map_or(0, |before| time - before));
        written.lines += 1;
        before = Some(time);
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[&str]) {
        let lines = parse(text).unwrap();
        assert_eq!(lines.iter().map(|line| line.content.as_str()).collect::<Vec<_>>(), expect, "{text}");
    }

    #[test]
    fn lines_are_joined_per_stream() {
        check("", &[]);
        check("t stdout F one\n", &["one"]);
        check("t stdout F \nt stderr F x y\nt stdout F unfin", &["", "x y"]);
        check("t stdout P a\nt stderr F e\nt stdout F b\n", &["e", "ab"]);
        check("t stdout F a\nt stdout P end\n", &["a", "end"]);
        assert!(parse("t stdin F x\n").is_err());
        assert!(parse("t stdout Q x\n").is_err());
        assert!(parse("nothing\n").is_err());
    }

    #[test]
    fn lost_and_doubled_lines_are_seen() {
        let line =
            |content: &str| Line { time: String::new(), stream: String::new(), content: content.into() };
        let good = [line("0 10"), line("1 15"), line("2 40")];
        assert_eq!(check_written(&good).unwrap(), Written { lines: 3, longest_gap: 25 });
        assert!(check_written(&[line("0 10"), line("2 15")]).is_err());
        assert!(check_written(&[line("0 10"), line("0 10")]).is_err());
    }
}

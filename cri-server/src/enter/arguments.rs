//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::spec::MaskedEqual;

/// Where the command goes, and where what becomes of it is written.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    /// File with the OCI `process` object.
    pub process: PathBuf,
    /// The container's bundle.
    pub bundle: PathBuf,
    /// The container's main process.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: i32,
    /// The container's cgroup in all hierarchies.
    pub cgroups: Vec<PathBuf>,
    /// How the bundle's filter spells masks.
    pub masks: MaskedEqual,
    /// File that names the process that was made.
    pub pid_file: PathBuf,
    /// File for errors.
    pub log: Option<PathBuf>,
    /// Socket that takes the master of a terminal.
    pub console: Option<PathBuf>,
}

impl Arguments {
    /// Options in any order, then the container's id, which only tells a reader of process lists what this is for.
    pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut arguments = arguments.peekable();
        let (mut process, mut bundle, mut pid_file, mut log, mut console) = (None, None, None, None, None);
        let (mut pid, mut pidfd, mut cgroups, mut masks) = (None, None, Vec::new(), MaskedEqual::ValueIsMask);
        while let Some(option) = arguments.next_if(|argument| argument.as_encoded_bytes().starts_with(b"--"))
        {
            let option = option.into_string().map_err(|option| format!("{option:?} is not an option"))?;
            let value = arguments.next().ok_or_else(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--process" => process = Some(value.into()),
                "--bundle" => bundle = Some(value.into()),
                "--pid-file" => pid_file = Some(value.into()),
                "--log" => log = Some(value.into()),
                "--console-socket" => console = Some(value.into()),
                "--cgroup" => cgroups.push(value.into()),
                "--pid" => pid = Some(number(&option, &value)?),
                "--pidfd" => pidfd = Some(number(&option, &value)?),
                "--masks" => masks = masks_of(&value)?,
                _ => return Err(format!("{option} is not an option")),
            }
        }
        let needed = |option: &str| format!("{option} is needed");
        Ok(Self {
            process: process.ok_or_else(|| needed("--process"))?,
            bundle: bundle.ok_or_else(|| needed("--bundle"))?,
            pid: pid.ok_or_else(|| needed("--pid"))?,
            pidfd: pidfd.ok_or_else(|| needed("--pidfd"))?,
            pid_file: pid_file.ok_or_else(|| needed("--pid-file"))?,
            cgroups,
            masks,
            log,
            console,
        })
    }
}

/// As `--masks` has it.
pub fn masks_word(masks: MaskedEqual) -> &'static str {
    match masks {
        MaskedEqual::ValueIsMask => "value",
        MaskedEqual::ValueTwoIsMask => "value-two",
    }
}

fn masks_of(word: &OsString) -> Result<MaskedEqual, String> {
    let all = [MaskedEqual::ValueIsMask, MaskedEqual::ValueTwoIsMask];
    let found = all.into_iter().find(|masks| *word == *masks_word(*masks));
    found.ok_or_else(|| format!("--masks: expected value or value-two, got {word:?}"))
}

fn number(option: &str, value: &OsString) -> Result<i32, String> {
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| *number >= 0);
    number.ok_or_else(|| format!("{option}: expected a number, got {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_command_line_is_read() {
        let line = "--process /p --bundle /b --pid 7 --pidfd 3 --cgroup /a --cgroup /c --masks value-two \
                    --pid-file /f --log /l --console-socket /s id";
        let read = parse(line).unwrap();
        assert_eq!(read.cgroups, [PathBuf::from("/a"), PathBuf::from("/c")]);
        assert_eq!((read.pid, read.pidfd, read.masks), (7, 3, MaskedEqual::ValueTwoIsMask));
        assert_eq!((read.log, read.console), (Some("/l".into()), Some("/s".into())));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |line: &str, expect: &str| assert_eq!(parse(line).unwrap_err(), expect, "{line}");
        check("", "--process is needed");
        check("--process", "--process needs a value");
        check("--what x", "--what is not an option");
        check("--pid x", "--pid: expected a number, got \"x\"");
        check("--pidfd -1", "--pidfd: expected a number, got \"-1\"");
        check("--masks both", "--masks: expected value or value-two, got \"both\"");
    }
}

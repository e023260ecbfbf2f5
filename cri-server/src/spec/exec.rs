//! A process that joins a running container: same user, environment, directory, capabilities and filters.

use super::oci::{Process, Spec};
use super::process::checked_command_line;
use super::{SpecError, env};

/// Whether a process has a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// A new pseudo terminal.
    Attached,
    /// Three pipes.
    None,
}

/// The process of ExecSync and Exec, made from the container's stored specification.
pub fn exec_process(spec: &Spec, command: Vec<String>, terminal: Terminal) -> Result<Process, SpecError> {
    let mut process = spec.process.clone();
    process.args = checked_command_line("cmd", command)?;
    process.terminal = terminal == Terminal::Attached;
    let has_term = process.env.iter().any(|entry| entry.split('=').next() == Some(env::TERM));
    if process.terminal && !has_term {
        process.env.push(format!("{}={}", env::TERM, env::TERM_VALUE));
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;
    use super::*;

    #[test]
    fn only_the_command_and_the_terminal_differ() {
        let spec = Case::new().generate().unwrap();
        let process = exec_process(&spec, vec!["id".into(), "-u".into()], Terminal::None).unwrap();
        assert_eq!(process, Process { args: vec!["id".into(), "-u".into()], ..spec.process.clone() });
        let process = exec_process(&spec, vec!["sh".into()], Terminal::Attached).unwrap();
        assert!(process.terminal);
        assert_eq!(process.env.last().map(String::as_str), Some("TERM=xterm"));
    }

    #[test]
    fn a_terminal_of_the_container_does_not_stick() {
        let mut case = Case::new();
        case.config.tty = true;
        let spec = case.generate().unwrap();
        let process = exec_process(&spec, vec!["id".into()], Terminal::None).unwrap();
        assert!(!process.terminal);
        let process = exec_process(&spec, vec!["id".into()], Terminal::Attached).unwrap();
        assert_eq!(process.env.iter().filter(|e| e.starts_with("TERM=")).count(), 1);
    }

    #[test]
    fn a_command_that_cannot_run_is_refused() {
        let spec = Case::new().generate().unwrap();
        for command in [vec![], vec![String::new()], vec!["a\0".to_string()]] {
            assert!(exec_process(&spec, command, Terminal::None).is_err());
        }
    }
}

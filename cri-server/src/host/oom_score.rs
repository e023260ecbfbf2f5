//! OOM scores of processes that run already.

use std::io;

use rustix::process::Pid;

/// Gives each process this score (proc_pid_oom_score_adj(5)), and says how it first failed; one that is gone needs
/// none. Processes started later inherit it.
pub fn set(processes: &[Pid], score: i32) -> io::Result<()> {
    let mut result = Ok(());
    for pid in processes {
        let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
        let gone = |error: &io::Error| {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
        };
        match std::fs::write(path, score.to_string()) {
            Err(error) if !gone(&error) => result = result.and(Err(error)),
            _written => {}
        }
    }
    result
}

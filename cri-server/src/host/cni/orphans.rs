//! Ends plugins that outlived the daemon that ran them, so that no ADD goes on beside the DEL that undoes it.
//!
//! They are found by CNI_CONTAINERID in their environment, which delegated plugins inherit.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

const ENVIRON_LIMIT: u64 = 1 << 20;

/// Kills every plugin that works for `container_id`, and waits until it is gone. Blocks for up to `patience`.
pub(super) fn end(container_id: &str, patience: Duration) -> io::Result<()> {
    let wanted = format!("CNI_CONTAINERID={container_id}");
    let deadline = Instant::now() + patience;
    loop {
        let mut killed = 0;
        for pid in processes()? {
            killed += u32::from(kill_if(pid, wanted.as_bytes()));
        }
        if killed == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a killed CNI plugin does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn processes() -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        pids.extend(name.to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)));
    }
    Ok(pids)
}

/// The handle is opened before the look, so that the process looked at is the one that is killed.
fn kill_if(pid: Pid, wanted: &[u8]) -> bool {
    let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let mut environ = Vec::new();
    let read = std::fs::File::open(format!("/proc/{}/environ", pid.as_raw_nonzero()))
        .and_then(|file| file.take(ENVIRON_LIMIT).read_to_end(&mut environ));
    let matches = read.is_ok() && environ.split(|byte| *byte == 0).any(|variable| variable == wanted);
    matches && rustix::process::pidfd_send_signal(&handle, Signal::KILL).is_ok()
}

//! Process 1 of a pod's PID namespace: reaps orphans and sleeps.
//!
//! It shares the namespace with hostile processes: it gives them nothing to trace, and ends only when somebody
//! outside of the namespace asks.

use super::sys;

/// Name as which the program is executed to become the init; also what process lists show.
pub const NAME: &std::ffi::CStr = c"pod-init";

/// Runs until SIGTERM from outside. The monitor's death kills it (set before the exec).
pub fn run() -> ! {
    let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE, libc::SIGQUIT];
    let hardened = sys::block_signals(&signals).is_ok()
        && rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).is_ok()
        && rustix::thread::set_name(NAME).is_ok();
    if !hardened {
        sys::exit_now(1);
    }
    loop {
        match sys::wait_signal(&signals) {
            Ok((libc::SIGTERM, 0)) => sys::exit_now(0),
            Ok((libc::SIGCHLD, _)) => {
                while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
            }
            _ => {}
        }
    }
}

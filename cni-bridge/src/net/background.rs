//! Work that nobody should wait for: the kernel's own waiting when links and rules go.
//!
//! Removing a link takes it away at once and then waits for traffic in flight; closing a netfilter socket waits until
//! removed rules are freed, with all of nf_tables locked. A child process does that waiting. It outlives this one by
//! a fraction of a second and leaves nothing behind when it is killed: the kernel finishes by itself.

use std::time::Duration;

/// After this long removed rules have been freed, and closing the socket does not lock anybody out.
const UNTIL_FREED: Duration = Duration::from_millis(100);

/// Runs `work` in a child process, then keeps what it returns open a little longer; here if there can be no child.
pub fn leave<T>(work: impl FnOnce() -> T) {
    // SAFETY: this process has a single thread here (`exec` joins its own), so the child starts in a
    // consistent state; it ends by `_exit` without running anything of the parent's.
    match unsafe { libc::fork() } {
        0 => {
            detach();
            let kept = work();
            std::thread::sleep(UNTIL_FREED);
            drop(kept);
            // SAFETY: ends the child at once; there is nothing to flush.
            unsafe { libc::_exit(0) }
        }
        -1 => drop(work()),
        _ => {}
    }
}

/// Lets go of the parent's session and streams: a runtime reads them to their end.
fn detach() {
    let _ = rustix::process::setsid();
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: nobody owns these descriptors but the standard library, which reads and writes nothing here and
        // would take a refusal for the end of the stream.
        unsafe { libc::close(stream) };
    }
}

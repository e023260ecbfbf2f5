//! Where the program starts, in place of the standard library's own start: that one reads the memory map and makes a
//! signal stack, a tenth of what running a plugin costs. What it does that matters here is done: the standard streams
//! are open, a reader that has gone is an error and no signal, output is flushed, a panic is an exit status.

use std::ffi::{c_char, c_int};
use std::io::Write;

/// Exit status after a panic, as Rust programs have it.
const PANICKED: u8 = 101;

/// What the C library calls; the standard library takes arguments and environment by itself.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    open_streams();
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let status = std::panic::catch_unwind(crate::run).unwrap_or(PANICKED);
    let _reader_is_gone = std::io::stdout().flush();
    cni_bridge::net::background::finish(status)
}

/// Opens what the caller has left closed of descriptors 0 to 2, so that no file of the state gets such a number and
/// a result is written into it.
fn open_streams() {
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: asks about a number; where nobody owns it, opening takes it, as it is the lowest that is free.
        unsafe {
            if libc::fcntl(stream, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
    }
}

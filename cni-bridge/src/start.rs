//! Where the program starts, in place of the standard library's own start: that one reads the memory map and makes a
//! signal stack, a tenth of what running a plugin costs. What it does that matters here is done: the standard streams
//! are open, a reader that has gone is an error and no signal, output is flushed, a panic is an exit status.

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

/// Exit status after a panic, as Rust programs have it.
const PANICKED: u8 = 101;

/// What the C library calls.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    open_streams();
    let argument = |at| {
        // SAFETY: the C library gives so many strings, which stay.
        let text = unsafe { CStr::from_ptr(*arguments.add(at)) };
        OsStr::from_bytes(text.to_bytes()).to_owned()
    };
    let arguments: Vec<OsString> = (0..usize::try_from(count).unwrap_or(0)).map(argument).collect();
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let status = std::panic::catch_unwind(|| crate::run(&arguments)).unwrap_or(PANICKED);
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

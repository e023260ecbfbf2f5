//! System calls that no safe wrapper offers. This process has one thread.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::filter::Filter;

/// A descriptor that came with the start of this program and stays open.
pub fn inherited(number: i32) -> BorrowedFd<'static> {
    // SAFETY: nothing here closes it; a number without a file only fails with EBADF.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// A session keyring that shares nothing with the node's. A kernel without keys has none to share.
pub fn new_session_keyring() -> io::Result<()> {
    // SAFETY: without a name no memory is read.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    match Errno::from_io_error(&io::Error::last_os_error()) {
        Some(Errno::NOSYS) if joined < 0 => Ok(()),
        Some(error) if joined < 0 => Err(error.into()),
        _ => Ok(()),
    }
}

/// Lets the process `pid` run on every CPU of its cpuset: a mask that the monitor was started with is not its own.
pub fn forget_affinity(pid: i32) {
    /// The kernel has at most so many CPUs.
    const CPUS: usize = 8192;
    let all = [u8::MAX; CPUS / 8];
    // SAFETY: the kernel reads as many bytes as there are.
    let _kept_where_refused =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, all.len(), all.as_ptr()) };
}

/// Closes every descriptor but the three standard ones and `kept`, which goes with the exec. What owned the others must
/// not be used or dropped any more.
pub fn close_all_but(kept: &OwnedFd) -> io::Result<()> {
    let kept = kept.as_raw_fd() as libc::c_uint;
    for (first, last) in [(3, kept - 1), (kept + 1, libc::c_uint::MAX)] {
        // SAFETY: as the contract says.
        let closed = first > last || unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0;
        if !closed {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Puts the filter over this process, for good.
pub fn load_filter(filter: &Filter) -> io::Result<()> {
    let length = u16::try_from(filter.instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: filter.instructions.as_ptr().cast_mut() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel reads as many instructions as there are, and keeps a copy.
    let loaded = unsafe { libc::syscall(libc::SYS_seccomp, mode, filter.flags, &raw const program) };
    match loaded {
        0 => Ok(()),
        // With TSYNC, a thread that it does not fit.
        thread if thread > 0 => Err(io::Error::other(format!("thread {thread} has another filter"))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes the program at `path`; returns only on failure.
pub fn execute(path: &CString, arguments: &[CString], environment: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| {
        let strings = strings.iter().map(|text| text.as_ptr());
        strings.chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: strings end with NUL, arrays with a null pointer, and all outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

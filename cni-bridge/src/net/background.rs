//! Work that nobody should wait for: the kernel's own waiting when links and rules go.
//!
//! Removing a link takes it away at once and then waits for traffic in flight; closing a netfilter socket waits until
//! removed rules are freed, with all of nf_tables locked. A child process does that waiting. It outlives this one by
//! a fraction of a second and leaves nothing behind when it is killed: the kernel finishes by itself.
//!
//! The child shares this process's memory, since copying it costs five times as much as everything else about a
//! child. So while this process goes on the child does nothing but call the kernel ([`send`]), and a child that does
//! more is made at the very end of this one ([`at_end`], [`finish`]).

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::net::SendFlags;
use rustix::thread::Timespec;

use super::error::NetError;
use super::socket::{Message, Socket};

/// After this long removed rules have been freed, and closing the socket does not lock anybody out.
const UNTIL_FREED: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Bytes of a child's stack; only what is used of it costs memory.
const STACK: usize = 1 << 20;

/// What is done at the end.
type Work = Box<dyn FnOnce() + Send>;

static AT_END: Mutex<Vec<Work>> = Mutex::new(Vec::new());

/// Something to send.
struct Errand {
    socket: RawFd,
    bytes: Vec<u8>,
}

/// Sends `request` by a child process, which waits for what the kernel does and keeps `kept` open a little longer.
/// Nobody hears of a refusal; where there can be no child it is sent here.
///
/// # Errors
/// [`NetError`] where it was sent here.
pub fn send<T>(mut socket: Socket, request: &Message, kept: T) -> Result<(), NetError> {
    let bytes = socket.encode(std::slice::from_ref(request)).1;
    // Not freed: the child reads it, perhaps after the end of this process.
    let errand = Box::leak(Box::new(Errand { socket: socket.as_fd().as_raw_fd(), bytes }));
    // SAFETY: `run_errand` takes what it is given, which is never freed; it neither allocates nor uses anything that
    // belongs to a thread, so this process may go on beside it.
    let sent = unsafe { spawn(run_errand, std::ptr::from_mut(errand).cast()) };
    // The child has descriptors of its own.
    drop(kept);
    if sent { Ok(()) } else { socket.apply(std::slice::from_ref(request)) }
}

/// Has `work` done by a child process when everything else is done.
pub fn at_end(work: impl FnOnce() + Send + 'static) {
    AT_END.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(work));
}

/// Ends this process, and starts what was to be done at its end.
pub fn finish(status: u8) -> ! {
    let work = std::mem::take(&mut *AT_END.lock().unwrap_or_else(PoisonError::into_inner));
    if !work.is_empty() {
        let work = Box::leak(Box::new(work));
        // SAFETY: `run_work` takes what it is given, which is never freed. It may use memory and what belongs to the
        // thread as it likes: this process does nothing more but end.
        if !unsafe { spawn(run_work, std::ptr::from_mut(work).cast()) } {
            std::mem::take(work).into_iter().for_each(|work| work());
        }
    }
    // SAFETY: ends the process at once; the caller has flushed what there is to be flushed.
    unsafe { libc::_exit(c_int::from(status)) }
}

/// Starts a child process that shares this one's memory; whether there is one.
///
/// # Safety
/// `entry` gets `argument` and may run while this process does, with the same thread-local memory.
unsafe fn spawn(entry: extern "C" fn(*mut c_void) -> c_int, argument: *mut c_void) -> bool {
    let mut stack = std::mem::ManuallyDrop::new(Vec::<u128>::with_capacity(STACK / size_of::<u128>()));
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    // SAFETY: the stack is memory of its own, aligned, never freed, and grows down from its end.
    unsafe { libc::clone(entry, top.cast(), libc::CLONE_VM | libc::SIGCHLD, argument) != -1 }
}

extern "C" fn run_errand(errand: *mut c_void) -> c_int {
    // SAFETY: `send` gives an errand that lives as long as the memory.
    let errand = unsafe { &*errand.cast::<Errand>() };
    detach();
    // SAFETY: the child's own table of descriptors has it open until the child ends.
    let socket = unsafe { BorrowedFd::borrow_raw(errand.socket) };
    let _nobody_to_tell = rustix::net::send(socket, &errand.bytes, SendFlags::empty());
    end()
}

extern "C" fn run_work(work: *mut c_void) -> c_int {
    // SAFETY: `finish` gives a list that lives as long as the memory, and leaves it alone.
    let work = std::mem::take(unsafe { &mut *work.cast::<Vec<Work>>() });
    detach();
    work.into_iter().for_each(|work| work());
    end()
}

/// Waits until nobody is locked out by the end of this process.
fn end() -> c_int {
    let _not_interrupted = rustix::thread::nanosleep(&UNTIL_FREED);
    // SAFETY: ends the child at once; there is nothing to flush.
    unsafe { libc::_exit(0) }
}

/// Lets go of the parent's session and streams: a runtime reads them to their end.
fn detach() {
    let _ = rustix::process::setsid();
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: nobody owns these descriptors but the standard library, which reads and writes nothing here and
        // would take a refusal for the end of the stream.
        unsafe { rustix::io::close(stream) };
    }
}

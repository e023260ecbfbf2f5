//! Limits of the daemon's own process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Few arenas: the C library would otherwise keep one per thread, and with it what each thread once used.
const ARENAS: libc::c_int = 2;

/// Raises the soft limit of open files to the hard one; containers inherit it, as they are used to. Keeps the heap
/// of a process with many short-lived threads small.
pub fn apply() {
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    // SAFETY: mallopt takes two integers, and runs before any other thread is started.
    let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    if set == 0 {
        tracing::warn!("the number of heap arenas stays as it is");
    }
}

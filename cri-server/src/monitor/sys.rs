//! System calls that no safe wrapper offers. All of them rely on this process having one thread.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The parent, with the child's process id.
    Parent(i32),
    /// The child. It must end with [`exit_now`] or [`exec`].
    Child,
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks; the child lives in new namespaces of the kinds in `flags` (`CLONE_NEW*`).
pub fn fork_into(flags: u64) -> io::Result<Fork> {
    // SAFETY: all-zero is the documented default of every field.
    let mut arguments: libc::clone_args = unsafe { MaybeUninit::zeroed().assume_init() };
    arguments.flags = flags;
    arguments.exit_signal = libc::SIGCHLD as u64;
    let size = size_of::<libc::clone_args>();
    // SAFETY: without CLONE_VM and without a stack this is a fork: the child goes on in a copy of this memory. No
    // other thread exists whose locks the copy could have caught.
    let pid = checked(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) })?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(pid as i32) })
}

/// Ends the process without running anything of its parent's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes any number and does not return.
    unsafe { libc::_exit(code) }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset refuses bad numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks `signals`: they wait until they are fetched. Programs inherit that, unless [`prepare`]d.
pub fn block_signals(signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals);
    // SAFETY: the set is initialised; the old one is not asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// A descriptor that is readable while one of `signals`, blocked before, is pending.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(signals);
    // SAFETY: -1 asks for a new descriptor.
    let fd = checked(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sleeps until one of `signals`, blocked before, comes: its number and who sent it (0: from outside of the PID
/// namespace).
pub fn wait_signal(signals: &[i32]) -> io::Result<(i32, i32)> {
    let set = set_of(signals);
    let mut seen = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: both point to memory of the right type.
    let signal = checked(unsafe { libc::sigwaitinfo(&set, seen.as_mut_ptr()) }.into())?;
    // SAFETY: zeroed at first and filled by the call; for the signals waited for, the sender's field is the active one.
    let sender = unsafe { seen.assume_init().si_pid() };
    Ok((signal as i32, sender))
}

/// Sends `signal`, real-time ones too, to the process behind a descriptor.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: no details are passed, and the kernel refuses bad numbers.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<()>(), 0) };
    checked(sent).map(drop)
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: callers own no descriptor object at or above `first` that is used afterwards.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// This process's own program on a mount of its own, which is read-only and attached nowhere: whoever sees a process
/// that runs from it can open its file, but not for writing.
pub fn read_only_program() -> io::Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(rustix::fs::CWD, "/proc/self/exe", flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let size = size_of::<libc::mount_attr>();
    let (fd, empty) = (mount.as_raw_fd(), c"".as_ptr());
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor; the structure is read only and outlives the call.
    let set = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, empty, libc::AT_EMPTY_PATH, &raw const attributes, size)
    };
    checked(set)?;
    // As long as the tree's own descriptor is open, whoever may mount in any namespace could make it writable again.
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    Ok(rustix::fs::open(
        path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?)
}

/// Becomes the program that `program` is open on, with one argument and no environment. Returns only on failure.
pub fn exec(program: impl AsFd, name: &CStr) -> io::Error {
    let arguments = [name.as_ptr(), std::ptr::null()];
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    let fd = program.as_fd().as_raw_fd();
    // SAFETY: strings end with NUL, arrays with a null pointer, and all outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Sets `lo` of this network namespace up.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    // SAFETY: the request names its interface; the kernel fills and reads the flags member.
    unsafe {
        checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request).into())?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request).into()).map(drop)
    }
}

/// Signal dispositions as the kernel keeps them; the C library hides two signals of its own.
#[repr(C)]
struct Disposition {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Makes every signal that is ignored do its default again: what is ignored here would be ignored in containers.
pub fn stop_ignoring_signals() {
    for signal in 1..=64 {
        let mut now = Disposition { handler: 0, flags: 0, restorer: 0, mask: 0 };
        let default = Disposition { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
        let (size, none) = (size_of::<u64>(), std::ptr::null::<Disposition>());
        // SAFETY: both point to structures of the kernel's layout; no handler of ours is replaced.
        unsafe {
            let asked = libc::syscall(libc::SYS_rt_sigaction, signal, none, &raw mut now, size);
            if asked == 0 && now.handler == libc::SIG_IGN {
                libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, none, size);
            }
        }
    }
}

/// Lets `command` start as a program expects: no signal blocked, and with the oom_score_adj given, if any. The program
/// itself, not what it forks, dies with this process: what it would go on making nobody would know of.
pub fn prepare(command: &mut Command, oom_score: Option<String>) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let none = set_of(&[]);
        // SAFETY: the set is initialised; the old one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) };
        oom_score.as_ref().map_or(Ok(()), |score| std::fs::write("/proc/self/oom_score_adj", score))
    };
    // SAFETY: between fork and exec of a process with one thread anything may run.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_makes_the_program_writable_again() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: root is needed for mounts");
            return;
        }
        let program = read_only_program().unwrap();
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let writable =
            || std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755));
        assert_eq!(writable().unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        let attributes =
            libc::mount_attr { attr_set: 0, attr_clr: libc::MOUNT_ATTR_RDONLY, propagation: 0, userns_fd: 0 };
        let (fd, size) = (program.as_raw_fd(), size_of::<libc::mount_attr>());
        // SAFETY: as in `read_only_program`.
        let cleared = unsafe {
            let empty = c"".as_ptr();
            libc::syscall(
                libc::SYS_mount_setattr,
                fd,
                empty,
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size,
            )
        };
        assert!(cleared < 0, "the mount was made writable");
        assert_eq!(writable().unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}

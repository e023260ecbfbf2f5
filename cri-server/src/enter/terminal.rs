//! The command's terminal, of the container's own devpts.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::spec::oci::Process;

const MULTIPLEXER: &str = "/dev/ptmx";
const DEVICE: (u32, u32) = (5, 2);

/// Makes it the controlling terminal and the standard descriptors; its master goes to `console`. The caller leads a
/// session.
pub fn make(process: &Process, proc: &OwnedFd, console: &UnixStream) -> Result<(), String> {
    let master = open_multiplexer(proc)?;
    let attach = || {
        rustix::pty::unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        if let Some(size) = process.console_size {
            let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(&master, size)?;
        }
        // Its group stays the one that devpts gives.
        rustix::fs::fchown(&terminal, Some(Uid::from_raw(process.user.uid)), None::<Gid>)?;
        rustix::process::ioctl_tiocsctty(&terminal)?;
        rustix::stdio::dup2_stdin(&terminal)?;
        rustix::stdio::dup2_stdout(&terminal)?;
        rustix::stdio::dup2_stderr(&terminal)
    };
    attach().map_err(|error| format!("making a terminal: {error}"))?;
    send(console, &master).map_err(|error| format!("handing the terminal over: {error}"))
}

/// What is there belongs to the container: nothing but the real device is opened.
fn open_multiplexer(proc: &OwnedFd) -> Result<OwnedFd, String> {
    let place = rustix::fs::openat2(
        CWD,
        MULTIPLEXER,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|error| format!("the container's {MULTIPLEXER}: {error}"))?;
    let status = rustix::fs::fstat(&place).map_err(|error| format!("{MULTIPLEXER}: {error}"))?;
    let device = (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
    if FileType::from_raw_mode(status.st_mode) != FileType::CharacterDevice || device != DEVICE {
        return Err(format!("the container's {MULTIPLEXER} is not the device 5:2"));
    }
    let again = format!("self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(proc, again, flags, Mode::empty())
        .map_err(|error| format!("opening the container's {MULTIPLEXER}: {error}"))
}

fn send(console: &UnixStream, master: &OwnedFd) -> Result<(), Errno> {
    let fds = [master.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let name = [IoSlice::new(MULTIPLEXER.as_bytes())];
    rustix::net::sendmsg(console, &name, &mut control, SendFlags::NOSIGNAL).map(drop)
}

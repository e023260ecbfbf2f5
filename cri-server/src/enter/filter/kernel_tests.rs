//! The compiled programs, run by the kernel. What is judged are system calls of a child process, which does nothing
//! else between its fork and its end.

use serde_json::json;

use super::*;
use crate::spec::capabilities::CapSet;
use crate::spec::seccomp::default_profile;

/// Exit code of a child that could not install its filter.
const NOT_INSTALLED: i32 = 255;

/// A call with up to three arguments, and the error that it must fail with; 0 = none.
type Probe = (libc::c_long, [libc::c_long; 3], i32);

/// Makes the calls under the filter. The first that does not end as expected is the answer.
fn under(filter: &Filter, probes: &[Probe]) -> Option<usize> {
    // SAFETY: the child makes plain system calls and ends without unwinding.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = if install(filter) { first_wrong(probes) } else { NOT_INSTALLED };
        // SAFETY: ends the process; nothing of it is used any more.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: `child` is ours and `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "the child died of signal {}", libc::WTERMSIG(status));
    let code = libc::WEXITSTATUS(status);
    assert_ne!(code, NOT_INSTALLED, "the kernel refused the filter");
    usize::try_from(code).unwrap().checked_sub(1)
}

fn install(filter: &Filter) -> bool {
    let len = filter.instructions.len() as u16;
    let program = libc::sock_fprog { len, filter: filter.instructions.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call, and the kernel only reads it.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(
                libc::SYS_seccomp,
                libc::c_long::from(libc::SECCOMP_SET_MODE_FILTER),
                filter.flags,
                &raw const program,
            ) == 0
    }
}

/// 0, or which probe it was, counted from 1.
fn first_wrong(probes: &[Probe]) -> i32 {
    let is_wrong = |(number, [a, b, c], expect): &Probe| {
        // SAFETY: the probes pass numbers and null pointers.
        let result = unsafe { libc::syscall(*number, *a, *b, *c) };
        // SAFETY: `errno` of this thread.
        let errno = if result < 0 { unsafe { *libc::__errno_location() } } else { 0 };
        errno != *expect
    };
    probes.iter().position(is_wrong).map_or(0, |index| index as i32 + 1)
}

#[test]
fn the_kernel_reads_the_filter_as_we_do() {
    let profile: Seccomp = serde_json::from_value(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": [
            {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
            {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 0o20, "valueTwo": 0o20, "op": "SCMP_CMP_MASKED_EQ"},
            ]},
            {"names": ["getsid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 78, "args": [
                {"index": 0, "value": 1_u64 << 32, "op": "SCMP_CMP_GE"},
            ]},
        ],
    }))
    .unwrap();
    let filter = compile(&profile, Machine::HERE, MaskedEqual::ValueIsMask).unwrap();
    let probes = [
        (libc::SYS_getppid, [0; 3], 77),
        (libc::SYS_getpid, [0; 3], 0),
        (libc::SYS_umask, [0o22, 0, 0], libc::EPERM),
        (libc::SYS_umask, [0o02, 0, 0], 0),
        (libc::SYS_getsid, [0; 3], 0),
        (libc::SYS_getsid, [1 << 32, 0, 0], 78),
    ];
    assert_eq!(under(&filter, &probes).map(|wrong| probes[wrong]), None);
}

#[test]
fn the_kernel_takes_the_default_profile() {
    let profile = default_profile(CapSet::EMPTY, Machine::HERE);
    let filter = compile(&profile, Machine::HERE, MaskedEqual::ValueIsMask).unwrap();
    let probes = [
        (libc::SYS_getpid, [0; 3], 0),
        (libc::SYS_clone, [0x1000_0011, 0, 0], libc::EPERM),
        (libc::SYS_clone3, [0; 3], libc::ENOSYS),
        (libc::SYS_unshare, [0x1000_0000, 0, 0], libc::EPERM),
        (libc::SYS_socket, [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0], 0),
        (libc::SYS_socket, [libc::AF_ALG.into(), libc::SOCK_SEQPACKET.into(), 0], libc::EPERM),
        (libc::SYS_keyctl, [0; 3], libc::EPERM),
        (9999, [0; 3], libc::ENOSYS),
    ];
    assert_eq!(under(&filter, &probes).map(|wrong| probes[wrong]), None);
}

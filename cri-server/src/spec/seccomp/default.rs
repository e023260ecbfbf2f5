//! The default profile. What it lets through is what users of container engines are used to; what it adds to that:
//!
//! - A call that the profile does not know fails with ENOSYS, so that C libraries fall back from calls that are
//!   newer than the profile; a call that it knows and refuses fails with EPERM, as everywhere.
//! - AF_ALG and AF_VSOCK sockets, io_uring, userfaultfd and the kernel's keyrings are refused: they reach kernel
//!   state that containers share. (32-bit x86 programs make sockets through `socketcall`, whose arguments no filter
//!   can read; refusing it would take their network away.)
//!
//! OCI runtimes leave out names that their libseccomp does not know.

use std::collections::BTreeSet;

use super::super::Machine;
use super::super::capabilities::CapSet;
use super::super::oci::{Seccomp, Syscall, SyscallArg};
use super::architectures;
use super::syscalls::{AARCH64, ALLOWED, BY_CAPABILITY, REFUSED, X86};

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
const AF_MCTP: u64 = 45;

/// CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET.
const NEW_NAMESPACES: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// PER_LINUX, PER_LINUX32, both with UNAME26, and the question which one it is.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile for a container with these capabilities.
pub fn default_profile(capabilities: CapSet, machine: Machine) -> Seccomp {
    let allowed = allowed(capabilities, machine);
    let refused: BTreeSet<&str> = words(REFUSED).filter(|name| !allowed.contains(name)).collect();
    let mut syscalls = vec![rule(allowed.iter().copied(), ALLOW, None)];
    syscalls.extend(personality());
    syscalls.extend(socket());
    if !allowed.contains("clone") {
        syscalls.extend(clone());
    }
    syscalls.push(rule(refused, ERRNO, Some(EPERM)));
    Seccomp {
        default_action: ERRNO.into(),
        default_errno_ret: Some(ENOSYS),
        architectures: architectures(machine).iter().map(|name| name.to_string()).collect(),
        flags: Vec::new(),
        syscalls,
    }
}

fn allowed(capabilities: CapSet, machine: Machine) -> BTreeSet<&'static str> {
    let own = match machine {
        Machine::X86_64 => X86,
        Machine::Aarch64 => AARCH64,
    };
    let mut names: BTreeSet<&str> = ALLOWED.iter().flat_map(|group| words(group)).chain(words(own)).collect();
    for (capability, more) in BY_CAPABILITY {
        if CapSet::named(capability).is_some_and(|one| capabilities.contains(one)) {
            names.extend(words(more));
        }
    }
    names
}

fn words(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split_ascii_whitespace()
}

/// Without CAP_SYS_ADMIN: processes and threads, no namespaces. `clone3` keeps its flags in memory, out of a
/// filter's sight, and so fails as unknown; callers then use `clone`.
fn clone() -> impl Iterator<Item = Syscall> {
    let all = NEW_NAMESPACES.iter().fold(0, |all, flag| all | flag);
    let refused =
        NEW_NAMESPACES.into_iter().map(|flag| conditional("clone", ERRNO, Some(EPERM), masked(flag, flag)));
    std::iter::once(conditional("clone", ALLOW, None, masked(all, 0))).chain(refused)
}

fn personality() -> impl Iterator<Item = Syscall> {
    PERSONALITIES
        .into_iter()
        .map(|value| conditional("personality", ALLOW, None, compare("SCMP_CMP_EQ", value)))
}

/// A filter compares 64 bits and the kernel reads 32 of them: "more than AF_VSOCK" would let AF_VSOCK with a bit above
/// them through, so what is allowed is named.
fn socket() -> impl Iterator<Item = Syscall> {
    let named = (AF_VSOCK + 1..=AF_MCTP).chain([AF_ALG + 1]);
    let named = named.map(|family| conditional("socket", ALLOW, None, compare("SCMP_CMP_EQ", family)));
    let refused = [AF_ALG, AF_VSOCK]
        .map(|family| conditional("socket", ERRNO, Some(EPERM), compare("SCMP_CMP_EQ", family)));
    let low = conditional("socket", ALLOW, None, compare("SCMP_CMP_LT", AF_ALG));
    std::iter::once(low).chain(named).chain(refused)
}

fn rule<'a>(names: impl IntoIterator<Item = &'a str>, action: &str, errno_ret: Option<u32>) -> Syscall {
    let names = names.into_iter().map(str::to_string).collect();
    Syscall { names, action: action.into(), errno_ret, args: Vec::new() }
}

fn conditional(name: &str, action: &str, errno_ret: Option<u32>, arg: SyscallArg) -> Syscall {
    Syscall { args: vec![arg], ..rule([name], action, errno_ret) }
}

fn compare(op: &str, value: u64) -> SyscallArg {
    SyscallArg { index: 0, value, value_two: 0, op: op.into() }
}

fn masked(mask: u64, value: u64) -> SyscallArg {
    SyscallArg { index: 0, value: mask, value_two: value, op: "SCMP_CMP_MASKED_EQ".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(capabilities: &[&str]) -> Seccomp {
        let set = capabilities.iter().map(|name| CapSet::named(name).unwrap()).collect();
        default_profile(set, Machine::X86_64)
    }

    /// `allow`, `if` (depends on arguments), `EPERM` or `ENOSYS` (not named).
    fn verdict(profile: &Seccomp, name: &str) -> &'static str {
        let rules: Vec<_> = profile.syscalls.iter().filter(|r| r.names.iter().any(|n| n == name)).collect();
        match rules.as_slice() {
            [] => "ENOSYS",
            [rule] if !rule.args.is_empty() => "if",
            [rule] if rule.action == ALLOW => "allow",
            [rule] if rule.errno_ret == Some(EPERM) => "EPERM",
            rules => {
                assert!(rules.iter().all(|rule| !rule.args.is_empty()), "{name} has contradicting rules");
                "if"
            }
        }
    }

    #[test]
    fn without_capabilities() {
        let profile = profile(&[]);
        let check = |names: &str, expect: &str| {
            for name in names.split(' ') {
                assert_eq!(verdict(&profile, name), expect, "{name}");
            }
        };
        check(
            "read execve mmap fork accept4 openat2 futex_waitv landlock_create_ruleset ptrace rseq",
            "allow",
        );
        check(
            "io_uring_setup io_uring_enter io_uring_register userfaultfd keyctl add_key request_key",
            "EPERM",
        );
        check(
            "mount umount2 unshare setns pivot_root bpf init_module kexec_load reboot syslog swapon",
            "EPERM",
        );
        check(
            "settimeofday clock_settime open_by_handle_at perf_event_open chroot acct vhangup mbind",
            "EPERM",
        );
        check("clone socket personality", "if");
        check("clone3 uselib create_module a_call_of_next_year", "ENOSYS");
    }

    #[test]
    fn capabilities_open_the_calls_that_they_are_for() {
        for (capability, calls) in BY_CAPABILITY {
            let (with, without) = (profile(&[capability]), profile(&[]));
            for call in words(calls) {
                assert_eq!(verdict(&with, call), "allow", "{capability} {call}");
                assert_ne!(verdict(&without, call), "allow", "{call} without {capability}");
            }
        }
        assert_eq!(verdict(&profile(&["SYS_ADMIN"]), "keyctl"), "EPERM");
        assert_eq!(verdict(&profile(&["SYS_ADMIN"]), "io_uring_setup"), "EPERM");
    }

    /// Whether the rules for `name` let this first argument through.
    fn lets(profile: &Seccomp, name: &str, value: u64) -> bool {
        let holds = |arg: &SyscallArg| match arg.op.as_str() {
            "SCMP_CMP_EQ" => value == arg.value,
            "SCMP_CMP_LT" => value < arg.value,
            "SCMP_CMP_MASKED_EQ" => value & arg.value == arg.value_two,
            op => panic!("{op}"),
        };
        let mut verdicts = profile.syscalls.iter().filter(|r| r.names == [name] && r.args.iter().all(holds));
        let first = verdicts.next().is_some_and(|rule| rule.action == ALLOW);
        assert!(verdicts.all(|rule| (rule.action == ALLOW) == first), "{name} {value:#x} is undecided");
        first
    }

    #[test]
    fn arguments() {
        let profile = profile(&[]);
        let check = |name: &str, value: u64, expect: bool| {
            assert_eq!(lets(&profile, name, value), expect, "{name} {value:#x}");
        };
        for family in [1, 2, 10, 16, 17, 37, 39, 41, 44] {
            check("socket", family, true);
        }
        check("socket", AF_ALG, false);
        check("socket", AF_VSOCK, false);
        for family in [0, 2, AF_ALG, AF_VSOCK, AF_MCTP] {
            check("socket", 1 << 32 | family, false);
        }
        check("clone", 0x01200011, true); // what fork uses
        check("clone", 0x003d0f00, true); // what threads use
        for flag in NEW_NAMESPACES {
            check("clone", flag | 17, false);
        }
        check("clone", 0x7e02_0000, false);
        for value in PERSONALITIES {
            check("personality", value, true);
        }
        check("personality", 0x0040_0000, false);
        check("personality", 0x0004_0000, false);
    }

    #[test]
    fn both_machines_filter_their_32_bit_modes() {
        let arm = default_profile(CapSet::EMPTY, Machine::Aarch64);
        assert_eq!(arm.architectures, ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]);
        assert_eq!(verdict(&arm, "arch_prctl"), "ENOSYS");
        assert_eq!(verdict(&arm, "set_tls"), "allow");
        assert_eq!(profile(&[]).architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    }
}

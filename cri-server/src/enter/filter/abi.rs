//! Calling conventions: which of them a machine has, and what system calls they number how.

use std::collections::HashMap;

use syscalls::{aarch64, arm, x86, x86_64};

use super::FilterError;
use crate::spec::Machine;

/// A calling convention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    /// 64-bit x86 with 32-bit pointers. To the kernel it is [`Abi::X86_64`] with [`X32_BIT`] in the number.
    X32,
    X86,
    Aarch64,
    Arm,
}

/// How much of an argument a call can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// The low word.
    Word,
    /// Both words.
    Double,
}

/// A way to make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u32,
    /// What argument 0 is for this call, where several are made through the number.
    pub(super) selector: Option<u64>,
}

/// Marks the numbers of x32.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The calls that x32 numbers otherwise than x86_64, from [`X32_OWN_FIRST`] on.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];
const X32_OWN_FIRST: u32 = 512;

/// What the crate lacks or spells otherwise than Linux.
const MORE_X86: [(&str, u32); 1] = [("break", 17)];
const MORE_AARCH64: [(&str, u32); 1] = [("newfstatat", 79)];
/// From 0xf0001 on are the private calls of 32-bit Arm.
const MORE_ARM: [(&str, u32); 7] = [
    ("sync_file_range2", 341),
    ("breakpoint", 0xf_0001),
    ("cacheflush", 0xf_0002),
    ("usr26", 0xf_0003),
    ("usr32", 0xf_0004),
    ("set_tls", 0xf_0005),
    ("get_tls", 0xf_0006),
];

/// The number of x86 through which the calls of [`SOCKETCALL`] are made.
const SOCKETCALL_NUMBER: u32 = 102;
/// The calls that argument 0 selects, from 1 on.
const SOCKETCALL: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

/// The number of x86 through which the calls of [`IPC`] are made.
const IPC_NUMBER: u32 = 117;
/// The calls, and the values of argument 0 that select them.
const IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// Architectures of the OCI specification that no [`Machine`] runs.
const FOREIGN: [&str; 18] = [
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
];

/// The conventions of a machine that a profile lists. The native one always is, and the first.
pub(super) fn listed(names: &[String], machine: Machine) -> Result<Vec<Abi>, FilterError> {
    let mut abis = vec![Abi::of(machine)[0]];
    for (index, name) in names.iter().enumerate() {
        if Abi::named(name).is_none() && !FOREIGN.contains(&name.as_str()) {
            let reason = format!("{name:?} is not an architecture");
            return Err(FilterError::invalid(format!("architectures[{index}]"), reason));
        }
    }
    let is_listed = |abi: &Abi| names.iter().any(|name| Abi::named(name) == Some(*abi));
    abis.extend(Abi::of(machine)[1..].iter().filter(|abi| is_listed(abi)));
    Ok(abis)
}

impl Abi {
    /// All conventions of a machine, the native one first. Those with one audit number are neighbours.
    fn of(machine: Machine) -> &'static [Self] {
        match machine {
            Machine::X86_64 => &[Self::X86_64, Self::X32, Self::X86],
            Machine::Aarch64 => &[Self::Aarch64, Self::Arm],
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "SCMP_ARCH_X86_64" => Some(Self::X86_64),
            "SCMP_ARCH_X32" => Some(Self::X32),
            "SCMP_ARCH_X86" => Some(Self::X86),
            "SCMP_ARCH_AARCH64" => Some(Self::Aarch64),
            "SCMP_ARCH_ARM" => Some(Self::Arm),
            _ => None,
        }
    }

    /// The kernel's `AUDIT_ARCH_*`: ELF machine, 64-bit, little-endian.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// How much conditions compare. For conventions of 32 bits the low word, also of the profile's values, as in
    /// libseccomp: so −1 is −1 there too.
    pub(super) fn width(self) -> Width {
        match self {
            Self::X86_64 | Self::Aarch64 => Width::Double,
            Self::X32 | Self::X86 | Self::Arm => Width::Word,
        }
    }

    /// Names and numbers of all calls, as seccomp sees the numbers. A number may have two names.
    pub(super) fn calls(self) -> Vec<(&'static str, u32)> {
        // Not by the crate's `iter()`, which leaves out the last call.
        macro_rules! table {
            ($sysno:ty) => {
                (0..=<$sysno>::last().id())
                    .filter_map(|number| <$sysno>::new(number as usize))
                    .map(|call| (call.name(), call.id() as u32))
            };
        }
        match self {
            Self::X86_64 => table!(x86_64::Sysno).collect(),
            Self::X32 => table!(x86_64::Sysno).map(|(name, number)| (name, x32(name, number))).collect(),
            Self::X86 => table!(x86::Sysno).chain(MORE_X86).collect(),
            Self::Aarch64 => table!(aarch64::Sysno).chain(MORE_AARCH64).collect(),
            Self::Arm => table!(arm::Sysno).chain(MORE_ARM).collect(),
        }
    }

    /// All ways to make each call.
    pub(super) fn entries(self) -> HashMap<&'static str, Vec<Entry>> {
        let mut entries: HashMap<_, Vec<_>> = HashMap::new();
        for (name, number) in self.calls() {
            entries.entry(name).or_default().push(Entry { number, selector: None });
        }
        if self == Self::X86 {
            for (name, number, selector) in selected() {
                entries.entry(name).or_default().push(Entry { number, selector: Some(selector) });
            }
        }
        entries
    }
}

/// The calls of x86 that are made through others: name, number, argument 0.
fn selected() -> impl Iterator<Item = (&'static str, u32, u64)> {
    let sockets = SOCKETCALL.into_iter().zip(1..).map(|(name, selector)| (name, SOCKETCALL_NUMBER, selector));
    sockets.chain(IPC.map(|(name, selector)| (name, IPC_NUMBER, selector)))
}

fn x32(name: &str, number: u32) -> u32 {
    let own = (X32_OWN_FIRST..).zip(X32_OWN).find(|(_, own)| *own == name);
    X32_BIT | own.map_or(number, |(number, _)| number)
}

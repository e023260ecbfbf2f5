//! Compiles the system call filter of a specification (`linux.seccomp`) to a program for seccomp(2).
//!
//! What a profile means is what it means to runc and libseccomp: names that an architecture lacks are passed over,
//! and so are rules that say the same as the default; a call of an architecture that the profile does not list
//! kills the thread. Where several rules name a call, one without conditions decides alone, else the strictest whose
//! conditions hold. ENOSYS for calls newer than all that are named, which runc adds, is not added here. Pure: no I/O,
//! and nothing about who installs the program.

mod abi;
mod code;
#[cfg(test)]
#[allow(unsafe_code)] // The kernel judges system calls of a child process.
mod kernel_tests;
mod rules;
mod table;
#[cfg(test)]
mod tests;

use abi::Abi;
use code::Code;
use rules::Rules;
use table::Table;

use crate::spec::oci::Seccomp;
use crate::spec::{Machine, MaskedEqual};

/// A filter as seccomp(2) takes it.
#[derive(Debug, Clone)]
pub struct Filter {
    /// The program, 1 to 4096 instructions.
    pub instructions: Vec<libc::sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: libc::c_ulong,
}

/// Why a profile is no filter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A field holds something that means nothing, or nothing here.
    #[error("linux.seccomp.{field}: {reason}")]
    Invalid {
        /// The field below `linux.seccomp`, as the OCI specification spells it.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel takes no program of this size.
    #[error("linux.seccomp: the filter has {0} instructions, and the kernel takes at most {max}", max = libc::BPF_MAXINSNS)]
    TooLong(usize),
}

impl FilterError {
    fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }
}

/// Compiles a profile for a machine; `masks` says which value of `SCMP_CMP_MASKED_EQ` is the mask.
pub fn compile(profile: &Seccomp, machine: Machine, masks: MaskedEqual) -> Result<Filter, FilterError> {
    let flags = flags(&profile.flags)?;
    let abis = abi::listed(&profile.architectures, machine)?;
    let rules = Rules::parse(profile, masks)?;
    let instructions = program(&tables(&abis, &rules));
    if instructions.len() > libc::BPF_MAXINSNS as usize {
        return Err(FilterError::TooLong(instructions.len()));
    }
    Ok(Filter { instructions, flags })
}

fn flags(names: &[String]) -> Result<libc::c_ulong, FilterError> {
    let flag = |(index, name): (usize, &String)| match name.as_str() {
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(libc::SECCOMP_FILTER_FLAG_TSYNC),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(libc::SECCOMP_FILTER_FLAG_LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
        // About waiting for a listener. There is none here, and the kernel refuses the bit without one.
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => Ok(0),
        _ => Err(FilterError::invalid(format!("flags[{index}]"), format!("{name:?} is not a flag"))),
    };
    names.iter().enumerate().map(flag).try_fold(0, |all, one| Ok(all | one?))
}

/// One table for each architecture that the kernel tells apart, the native one first.
fn tables(abis: &[Abi], rules: &Rules<'_>) -> Vec<Table> {
    let mut audits: Vec<u32> = abis.iter().map(|abi| abi.audit()).collect();
    audits.dedup();
    audits.into_iter().map(|audit| Table::new(audit, abis, rules)).collect()
}

/// Finds the table of the call's architecture.
fn program(tables: &[Table]) -> Vec<libc::sock_filter> {
    let mut code = Code::default();
    let mut start = code.ret(libc::SECCOMP_RET_KILL_THREAD);
    for table in tables.iter().rev() {
        let judge = table.emit(&mut code);
        start = code.branch(libc::BPF_JEQ, table.audit, code::Exits { yes: judge, no: start });
    }
    code.load(code::ARCH, start);
    code.finish()
}

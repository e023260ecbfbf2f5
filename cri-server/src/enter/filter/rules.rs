//! The rules of a profile, parsed: what the filter returns, and under which conditions on arguments.

use super::FilterError;
use crate::spec::MaskedEqual;
use crate::spec::oci::{Seccomp, Syscall, SyscallArg};

/// What a filter returns: `SECCOMP_RET_*` with its data.
pub(super) type Verdict = u32;

/// EPERM, the error where a profile names none.
const DEFAULT_ERRNO: u32 = 1;
/// MAX_ERRNO of the kernel.
const MAX_ERRNO: u32 = 4095;
const ARGUMENTS: u32 = 6;

/// A profile's rules.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    /// For calls that no rule decides.
    pub(super) default: Verdict,
    list: Vec<(&'a [String], Rule)>,
}

/// A verdict on calls for which all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) verdict: Verdict,
    pub(super) conditions: Vec<Condition>,
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) index: u32,
    pub(super) test: Test,
    pub(super) expect: Expect,
}

/// Comparison of an unsigned 64-bit argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    /// Equal to `value` in the bits of `mask`.
    Equal { mask: u64, value: u64 },
    /// Greater than or equal to.
    AtLeast(u64),
    /// Greater than.
    Above(u64),
}

/// What a test must say for its condition to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    Yes,
    No,
}

impl<'a> Rules<'a> {
    pub(super) fn parse(profile: &'a Seccomp, masks: MaskedEqual) -> Result<Self, FilterError> {
        let default = verdict(&profile.default_action, profile.default_errno_ret, Place::Default)?;
        let mut list = Vec::new();
        for (index, syscall) in profile.syscalls.iter().enumerate() {
            let verdict = verdict(&syscall.action, syscall.errno_ret, Place::Rule(index))?;
            let alternatives = alternatives(syscall, index, masks)?;
            if verdict != default {
                let rules = alternatives.into_iter().map(|conditions| Rule { verdict, conditions });
                list.extend(rules.map(|rule| (syscall.names.as_slice(), rule)));
            }
        }
        Ok(Self { default, list })
    }

    /// The rules in their order, each with every name of a call that it has.
    pub(super) fn named(&self) -> impl Iterator<Item = (&str, &Rule)> {
        self.list.iter().flat_map(|(names, rule)| names.iter().map(move |name| (name.as_str(), rule)))
    }
}

impl Rule {
    /// The rule for a call that is made through another, whose argument 0 selects it. As in libseccomp that takes the
    /// place of a condition on argument 0, and conditions on others stay.
    pub(super) fn selected_by(&self, value: u64) -> Self {
        let test = Test::Equal { mask: u64::MAX, value };
        let mut conditions = vec![Condition { index: 0, test, expect: Expect::Yes }];
        conditions.extend(self.conditions.iter().filter(|condition| condition.index != 0));
        Self { verdict: self.verdict, conditions }
    }

    /// Grows from the strictest action to the mildest, in the order in which the kernel ranks the verdicts of several
    /// filters.
    pub(super) fn mildness(&self) -> i32 {
        (self.verdict & libc::SECCOMP_RET_ACTION_FULL) as i32
    }
}

/// Where an action stands, for messages.
enum Place {
    Default,
    Rule(usize),
}

impl Place {
    fn action(&self) -> String {
        match self {
            Self::Default => "defaultAction".into(),
            Self::Rule(index) => format!("syscalls[{index}].action"),
        }
    }

    fn errno(&self) -> String {
        match self {
            Self::Default => "defaultErrnoRet".into(),
            Self::Rule(index) => format!("syscalls[{index}].errnoRet"),
        }
    }
}

fn verdict(action: &str, errno: Option<u32>, place: Place) -> Result<Verdict, FilterError> {
    let with_data = |verdict: Verdict, max: u32| match errno.unwrap_or(DEFAULT_ERRNO) {
        data if data > max => Err(FilterError::invalid(place.errno(), format!("{data} is more than {max}"))),
        data => Ok(verdict | data),
    };
    match action {
        "SCMP_ACT_ALLOW" => Ok(libc::SECCOMP_RET_ALLOW),
        "SCMP_ACT_ERRNO" => with_data(libc::SECCOMP_RET_ERRNO, MAX_ERRNO),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(libc::SECCOMP_RET_KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Ok(libc::SECCOMP_RET_KILL_PROCESS),
        "SCMP_ACT_LOG" => Ok(libc::SECCOMP_RET_LOG),
        "SCMP_ACT_TRACE" => with_data(libc::SECCOMP_RET_TRACE, libc::SECCOMP_RET_DATA),
        "SCMP_ACT_TRAP" => Ok(libc::SECCOMP_RET_TRAP),
        "SCMP_ACT_NOTIFY" => Err(FilterError::invalid(
            place.action(),
            "\"SCMP_ACT_NOTIFY\" is not supported: no one would answer",
        )),
        _ => Err(FilterError::invalid(place.action(), format!("{action:?} is not an action"))),
    }
}

/// The sets of conditions of a rule. Conditions on one argument twice cannot be meant to hold together: as in runc,
/// each condition is then a set of its own.
fn alternatives(
    syscall: &Syscall,
    rule: usize,
    masks: MaskedEqual,
) -> Result<Vec<Vec<Condition>>, FilterError> {
    let parse = |(index, arg)| condition(arg, masks, || format!("syscalls[{rule}].args[{index}]"));
    let conditions = syscall.args.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    let mut indices: Vec<u32> = conditions.iter().map(|condition| condition.index).collect();
    indices.sort_unstable();
    indices.dedup();
    if indices.len() == conditions.len() {
        return Ok(vec![conditions]);
    }
    Ok(conditions.into_iter().map(|condition| vec![condition]).collect())
}

fn condition(
    arg: &SyscallArg,
    masks: MaskedEqual,
    field: impl Fn() -> String,
) -> Result<Condition, FilterError> {
    if arg.index >= ARGUMENTS {
        let reason = format!("a system call has no argument {}", arg.index);
        return Err(FilterError::invalid(field() + ".index", reason));
    }
    let equal = Test::Equal { mask: u64::MAX, value: arg.value };
    let (test, expect) = match arg.op.as_str() {
        "SCMP_CMP_EQ" => (equal, Expect::Yes),
        "SCMP_CMP_NE" => (equal, Expect::No),
        "SCMP_CMP_GE" => (Test::AtLeast(arg.value), Expect::Yes),
        "SCMP_CMP_LT" => (Test::AtLeast(arg.value), Expect::No),
        "SCMP_CMP_GT" => (Test::Above(arg.value), Expect::Yes),
        "SCMP_CMP_LE" => (Test::Above(arg.value), Expect::No),
        "SCMP_CMP_MASKED_EQ" => (masked(arg, masks), Expect::Yes),
        op => return Err(FilterError::invalid(field() + ".op", format!("{op:?} is not an operator"))),
    };
    Ok(Condition { index: arg.index, test, expect })
}

/// Bits of the value outside the mask do not count, as in libseccomp.
fn masked(arg: &SyscallArg, masks: MaskedEqual) -> Test {
    let (mask, value) = match masks {
        MaskedEqual::ValueIsMask => (arg.value, arg.value_two),
        MaskedEqual::ValueTwoIsMask => (arg.value_two, arg.value),
    };
    Test::Equal { mask, value: value & mask }
}

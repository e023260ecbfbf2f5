//! The compiled programs, run by a small machine of our own.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
};
use serde_json::{Value, json};

use super::abi::X32_BIT;
use super::*;
use crate::spec::capabilities::CapSet;
use crate::spec::seccomp::default_profile;

mod architectures;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const ARM: u32 = 0x4000_0028;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;

/// What the filter says of a call: architecture, number, first arguments.
fn judge(filter: &Filter, arch: u32, number: u32, args: &[u64]) -> u32 {
    let mut words = vec![number, arch, 0, 0];
    for index in 0..6 {
        let arg = args.get(index).copied().unwrap_or(0);
        words.extend([arg as u32, (arg >> 32) as u32]);
    }
    run(&filter.instructions, &words)
}

fn run(program: &[libc::sock_filter], words: &[u32]) -> u32 {
    const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
    const AND: u32 = BPF_ALU | BPF_AND | BPF_K;
    const RETURN: u32 = BPF_RET | BPF_K;
    const GO: u32 = BPF_JMP | BPF_JA;
    const EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
    const ABOVE: u32 = BPF_JMP | BPF_JGT | BPF_K;
    const AT_LEAST: u32 = BPF_JMP | BPF_JGE | BPF_K;
    let (mut at, mut loaded) = (0, 0u32);
    loop {
        let step = program[at];
        at += 1;
        let mut jump = |yes: bool| at += usize::from(if yes { step.jt } else { step.jf });
        match u32::from(step.code) {
            LOAD => loaded = words[step.k as usize / 4],
            AND => loaded &= step.k,
            EQUAL => jump(loaded == step.k),
            ABOVE => jump(loaded > step.k),
            AT_LEAST => jump(loaded >= step.k),
            GO => at += step.k as usize,
            RETURN => return step.k,
            code => panic!("{code:#x}"),
        }
    }
}

fn profile(json: Value) -> Seccomp {
    serde_json::from_value(json).unwrap()
}

/// A filter of x86_64 alone that allows what these rules do not decide.
fn ruled(rules: Value) -> Filter {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    compile(&profile, Machine::X86_64, MaskedEqual::ValueIsMask).unwrap()
}

fn rule(name: &str, errno: u32, args: Value) -> Value {
    json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args})
}

fn errno(number: u32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number
}

#[test]
fn actions() {
    let check = |action: &str, errno: Option<u32>, expect: u32| {
        let mut rule = json!({"names": ["getpid"], "action": action});
        let mut default = json!({"defaultAction": action});
        if let Some(errno) = errno {
            rule["errnoRet"] = errno.into();
            default["defaultErrnoRet"] = errno.into();
        }
        assert_eq!(judge(&ruled(json!([rule])), X86_64, 39, &[]), expect, "{action}");
        let default = compile(&profile(default), Machine::X86_64, MaskedEqual::ValueIsMask).unwrap();
        assert_eq!(judge(&default, X86_64, 39, &[]), expect, "{action} as the default");
    };
    check("SCMP_ACT_KILL", None, 0);
    check("SCMP_ACT_KILL_THREAD", None, 0);
    check("SCMP_ACT_KILL_PROCESS", Some(7), 0x8000_0000);
    check("SCMP_ACT_TRAP", None, 0x0003_0000);
    check("SCMP_ACT_ERRNO", None, 0x0005_0001);
    check("SCMP_ACT_ERRNO", Some(0), 0x0005_0000);
    check("SCMP_ACT_ERRNO", Some(4095), 0x0005_0fff);
    check("SCMP_ACT_TRACE", None, 0x7ff0_0001);
    check("SCMP_ACT_TRACE", Some(0xffff), 0x7ff0_ffff);
    check("SCMP_ACT_ALLOW", None, 0x7fff_0000);
    check("SCMP_ACT_LOG", None, 0x7ffc_0000);
}

#[test]
fn operators() {
    const HIGH: u64 = 1 << 32;
    let check = |op: &str, value: u64, holds: &[u64], fails: &[u64]| {
        for index in 0..6 {
            let args = json!([{"index": index, "value": value, "op": op}]);
            let filter = ruled(json!([rule("getpid", 5, args)]));
            let verdict = |arg: u64| {
                let mut args = [0x5555_aaaa_5555_aaaa; 6];
                args[index] = arg;
                judge(&filter, X86_64, 39, &args)
            };
            for arg in holds {
                assert_eq!(verdict(*arg), errno(5), "{arg:#x} {op} {value:#x}");
            }
            for arg in fails {
                assert_eq!(verdict(*arg), ALLOW, "{arg:#x} {op} {value:#x}");
            }
        }
    };
    for value in [7, HIGH + 7, 7 * HIGH, u64::MAX - 1] {
        let other = [0, value - 1, value + 1, value ^ HIGH, value ^ (1 << 63), u64::MAX];
        let less = [0, value - 1, value - 7, value.saturating_sub(HIGH)].map(|less| less.min(value - 1));
        let more = [value + 1, value.saturating_add(HIGH), u64::MAX];
        check("SCMP_CMP_EQ", value, &[value], &other);
        check("SCMP_CMP_NE", value, &other, &[value]);
        check("SCMP_CMP_LT", value, &less, &[&more[..], &[value]].concat());
        check("SCMP_CMP_LE", value, &[&less[..], &[value]].concat(), &more);
        check("SCMP_CMP_GT", value, &more, &[&less[..], &[value]].concat());
        check("SCMP_CMP_GE", value, &[&more[..], &[value]].concat(), &less);
    }
    // The low word decides only where the high words are the same.
    check("SCMP_CMP_LT", 2 * HIGH + 5, &[HIGH + 9, 2 * HIGH + 4], &[2 * HIGH + 5, 3 * HIGH]);
    check("SCMP_CMP_GE", 2 * HIGH + 5, &[3 * HIGH, 2 * HIGH + 5], &[HIGH + 9, 2 * HIGH + 4]);
    check("SCMP_CMP_GE", 0, &[0, u64::MAX], &[]);
    check("SCMP_CMP_GT", u64::MAX, &[], &[0, u64::MAX]);
}

#[test]
fn masks() {
    let check = |mask: u64, value: u64, arg: u64, expect: u32| {
        for (masks, first, second) in
            [(MaskedEqual::ValueIsMask, mask, value), (MaskedEqual::ValueTwoIsMask, value, mask)]
        {
            let args = json!([{"index": 1, "value": first, "valueTwo": second, "op": "SCMP_CMP_MASKED_EQ"}]);
            let rules = json!([rule("getpid", 5, args)]);
            let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
            let filter = compile(&profile, Machine::X86_64, masks).unwrap();
            assert_eq!(judge(&filter, X86_64, 39, &[0, arg]), expect, "{arg:#x} & {mask:#x} == {value:#x}");
        }
    };
    check(0xf0, 0x30, 0x3c, errno(5));
    check(0xf0, 0x30, 0xffff_ffff_ffff_ff3c, errno(5));
    check(0xf0, 0x30, 0x70, ALLOW);
    check(0xf0, 0x3f, 0x30, errno(5));
    check(0xf0, 0, 0x0f, errno(5));
    check(0xf0_0000_00f0, 0x30_0000_0030, 0x3f_0000_003f, errno(5));
    check(0xf0_0000_00f0, 0x30_0000_0030, 0x40_0000_0030, ALLOW);
    check(0xf0_0000_00f0, 0x30_0000_0030, 0x30_0000_0040, ALLOW);
    check(0xf0_0000_0000, 0x30_0000_0000, 0x30_1234_5678, errno(5));
    check(0, 0, u64::MAX, errno(5));
    check(u64::MAX, u64::MAX, u64::MAX, errno(5));
    check(u64::MAX, u64::MAX, u64::MAX >> 1, ALLOW);
}

#[test]
fn which_rule_decides() {
    let equal = |index: u32, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let check = |rules: Value, args: &[u64], expect: u32| {
        assert_eq!(judge(&ruled(rules.clone()), X86_64, 39, args), expect, "{args:?} by {rules}");
    };
    let one = rule("getpid", 5, json!([equal(0, 1)]));
    let any = rule("getpid", 6, json!([]));
    let both = rule("getpid", 7, json!([equal(0, 1), equal(1, 2)]));
    let twice = rule("getpid", 8, json!([equal(0, 1), equal(0, 3), equal(1, 2)]));
    let other = rule("getppid", 9, json!([]));
    let same_as_default = json!({"names": ["getpid"], "action": "SCMP_ACT_ALLOW"});
    check(json!([]), &[1], ALLOW);
    check(json!([one]), &[1], errno(5));
    check(json!([one]), &[2], ALLOW);
    check(json!([one, any]), &[1], errno(6));
    check(json!([any, one]), &[1], errno(6));
    check(json!([any, rule("getpid", 5, json!([]))]), &[1], errno(6));
    check(json!([one, both]), &[1, 2], errno(5));
    check(json!([both, one]), &[1, 2], errno(7));
    check(json!([both, one]), &[1, 3], errno(5));
    check(json!([both]), &[1, 3], ALLOW);
    check(json!([both]), &[0, 2], ALLOW);
    for args in [[1, 0], [3, 0], [0, 2]] {
        check(json!([twice]), &args, errno(8));
    }
    check(json!([twice]), &[2, 1], ALLOW);
    check(json!([other]), &[], ALLOW);
    check(json!([same_as_default, one]), &[1], errno(5));
    check(json!([one, same_as_default]), &[1], errno(5));
    check(json!([rule("no_such_call", 5, json!([])), one]), &[1], errno(5));
}

#[test]
fn the_strictest_rule_that_holds_decides() {
    const STRICTEST_FIRST: [(&str, u32); 7] = [
        ("SCMP_ACT_KILL_PROCESS", libc::SECCOMP_RET_KILL_PROCESS),
        ("SCMP_ACT_KILL_THREAD", KILL),
        ("SCMP_ACT_TRAP", libc::SECCOMP_RET_TRAP),
        ("SCMP_ACT_ERRNO", EPERM),
        ("SCMP_ACT_TRACE", libc::SECCOMP_RET_TRACE | 1),
        ("SCMP_ACT_LOG", libc::SECCOMP_RET_LOG),
        ("SCMP_ACT_ALLOW", ALLOW),
    ];
    let rule = |action: &str, index: u32| {
        let holds = json!([{"index": index, "value": 1, "op": "SCMP_CMP_EQ"}]);
        json!({"names": ["getpid"], "action": action, "args": holds})
    };
    let check = |rules: [Value; 2], args: &[u64], expect: u32| {
        let profile =
            profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": &rules}));
        let filter = compile(&profile, Machine::X86_64, MaskedEqual::ValueIsMask).unwrap();
        assert_eq!(judge(&filter, X86_64, 39, args), expect, "{args:?} by {rules:?}");
    };
    for (place, (strict, expect)) in STRICTEST_FIRST.into_iter().enumerate() {
        for (mild, less) in &STRICTEST_FIRST[place + 1..] {
            for rules in [[rule(strict, 0), rule(mild, 1)], [rule(mild, 1), rule(strict, 0)]] {
                check(rules.clone(), &[1, 1], expect);
                check(rules.clone(), &[1, 0], expect);
                check(rules.clone(), &[0, 1], *less);
                check(rules, &[0, 0], ENOSYS);
            }
        }
    }
}

/// What these rules say of a call of 32-bit x86, where all else fails with ENOSYS.
fn judge_i386(rules: &Value, number: u32, args: &[u64]) -> u32 {
    let profile = profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": rules,
    }));
    let filter = compile(&profile, Machine::X86_64, MaskedEqual::ValueIsMask).unwrap();
    judge(&filter, I386, number, args)
}

#[test]
fn calls_through_others() {
    const SOCKETCALL: u32 = 102;
    const IPC: u32 = 117;
    let check = |name: &str, direct: Option<u32>, through: u32, selector: u64| {
        let rules = json!([rule(name, 5, json!([]))]);
        for other in 0..32 {
            let expect = if other == selector { errno(5) } else { ENOSYS };
            assert_eq!(judge_i386(&rules, through, &[other]), expect, "{name} by {through}({other})");
        }
        assert_eq!(judge_i386(&rules, SOCKETCALL + IPC - through, &[selector]), ENOSYS, "{name}");
        if let Some(number) = direct {
            assert_eq!(judge_i386(&rules, number, &[]), errno(5), "{name} by {number}");
        }
    };
    check("socket", Some(359), SOCKETCALL, 1);
    check("bind", Some(361), SOCKETCALL, 2);
    check("connect", Some(362), SOCKETCALL, 3);
    check("listen", Some(363), SOCKETCALL, 4);
    check("accept", None, SOCKETCALL, 5);
    check("getsockname", Some(367), SOCKETCALL, 6);
    check("getpeername", Some(368), SOCKETCALL, 7);
    check("socketpair", Some(360), SOCKETCALL, 8);
    check("send", None, SOCKETCALL, 9);
    check("recv", None, SOCKETCALL, 10);
    check("sendto", Some(369), SOCKETCALL, 11);
    check("recvfrom", Some(371), SOCKETCALL, 12);
    check("shutdown", Some(373), SOCKETCALL, 13);
    check("setsockopt", Some(366), SOCKETCALL, 14);
    check("getsockopt", Some(365), SOCKETCALL, 15);
    check("sendmsg", Some(370), SOCKETCALL, 16);
    check("recvmsg", Some(372), SOCKETCALL, 17);
    check("accept4", Some(364), SOCKETCALL, 18);
    check("recvmmsg", Some(337), SOCKETCALL, 19);
    check("sendmmsg", Some(345), SOCKETCALL, 20);
    check("semop", None, IPC, 1);
    check("semget", Some(393), IPC, 2);
    check("semctl", Some(394), IPC, 3);
    check("semtimedop", None, IPC, 4);
    check("msgsnd", Some(400), IPC, 11);
    check("msgrcv", Some(401), IPC, 12);
    check("msgget", Some(399), IPC, 13);
    check("msgctl", Some(402), IPC, 14);
    check("shmat", Some(397), IPC, 21);
    check("shmdt", Some(398), IPC, 22);
    check("shmget", Some(395), IPC, 23);
    check("shmctl", Some(396), IPC, 24);
}

#[test]
fn which_rule_decides_on_calls_through_others() {
    const SOCKETCALL: u32 = 102;
    let equal = |index: u32, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let allow = |name: &str, args: Value| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args});
    let check = |rules: Value, number: u32, args: &[u64], expect: u32| {
        assert_eq!(judge_i386(&rules, number, args), expect, "{number} {args:?} by {rules}");
    };
    let family = rule("socket", 5, json!([equal(0, 38)]));
    check(json!([family]), 359, &[38], errno(5));
    check(json!([family]), 359, &[1], ENOSYS);
    check(json!([family]), SOCKETCALL, &[1], errno(5));
    check(json!([family]), SOCKETCALL, &[38], ENOSYS);

    let kind = rule("socket", 5, json!([equal(0, 38), equal(1, 3)]));
    check(json!([kind]), 359, &[38, 3], errno(5));
    check(json!([kind]), 359, &[1, 3], ENOSYS);
    check(json!([kind]), SOCKETCALL, &[1, 3], errno(5));
    check(json!([kind]), SOCKETCALL, &[1, 2], ENOSYS);

    let unix = allow("socket", json!([equal(0, 1)]));
    for rules in [json!([unix, family]), json!([family, unix])] {
        check(rules.clone(), 359, &[1], ALLOW);
        check(rules.clone(), 359, &[38], errno(5));
        check(rules, SOCKETCALL, &[1], errno(5));
    }
    let accept = rule("accept", 6, json!([]));
    for rules in [json!([unix, accept]), json!([accept, unix])] {
        check(rules.clone(), SOCKETCALL, &[1], ALLOW);
        check(rules.clone(), SOCKETCALL, &[5], errno(6));
        check(rules, SOCKETCALL, &[2], ENOSYS);
    }
    let first = rule("socketcall", 7, json!([equal(0, 1)]));
    check(json!([first, family]), SOCKETCALL, &[1], errno(7));
    check(json!([family, first]), SOCKETCALL, &[1], errno(5));

    for (through, call, number) in [("socketcall", "socket", 102), ("ipc", "semop", 117)] {
        let whole = allow(through, json!([]));
        let one = rule(call, 8, json!([]));
        for rules in [json!([whole, one]), json!([one, whole])] {
            check(rules, number, &[1], ALLOW);
        }
    }
}

#[test]
fn flags_are_bits() {
    let check = |names: Value, expect: libc::c_ulong| {
        let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": names}));
        assert_eq!(compile(&profile, Machine::X86_64, MaskedEqual::ValueIsMask).unwrap().flags, expect);
    };
    check(json!([]), 0);
    check(json!(["SECCOMP_FILTER_FLAG_TSYNC"]), 1);
    check(json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]), 6);
    check(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), 0);
    check(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_LOG"]), 2);
}

#[test]
fn errors_name_their_field() {
    let check = |pointer: &str, value: Value, expect: &str| {
        let arg = json!({"index": 0, "value": 1, "op": "SCMP_CMP_EQ"});
        let mut json = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [rule("read", 1, json!([])), rule("write", 2, json!([arg, arg]))],
        });
        *json.pointer_mut(pointer).unwrap() = value;
        let error = compile(&profile(json), Machine::X86_64, MaskedEqual::ValueIsMask).unwrap_err();
        assert_eq!(error.to_string(), format!("linux.seccomp.{expect}"));
    };
    check("/defaultAction", json!("ALLOW"), "defaultAction: \"ALLOW\" is not an action");
    check("/defaultErrnoRet", json!(4096), "defaultErrnoRet: 4096 is more than 4095");
    check("/architectures/1", json!("x86"), "architectures[1]: \"x86\" is not an architecture");
    check("/flags/0", json!("TSYNC"), "flags[0]: \"TSYNC\" is not a flag");
    check(
        "/syscalls/1/action",
        json!("SCMP_ACT_FOO"),
        "syscalls[1].action: \"SCMP_ACT_FOO\" is not an action",
    );
    check(
        "/syscalls/0/action",
        json!("SCMP_ACT_NOTIFY"),
        "syscalls[0].action: \"SCMP_ACT_NOTIFY\" is not supported: no one would answer",
    );
    check("/syscalls/1/errnoRet", json!(5000), "syscalls[1].errnoRet: 5000 is more than 4095");
    check("/syscalls/1/args/1/index", json!(6), "syscalls[1].args[1].index: a system call has no argument 6");
    check("/syscalls/1/args/0/op", json!("=="), "syscalls[1].args[0].op: \"==\" is not an operator");
}

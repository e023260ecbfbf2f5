//! The compiled programs, run by a small machine of our own.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
};
use serde_json::{Value, json};

use super::abi::X32_BIT;
use super::*;
use crate::spec::capabilities::CapSet;
use crate::spec::seccomp::default_profile;

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

/// `getpid`, `execve`, `rt_sigaction` and `setuid(-1)` fail with numbers of their own, all else with ENOSYS.
fn everywhere(architectures: &[&str], machine: Machine) -> Filter {
    let minus_one = json!([{"index": 0, "value": u64::MAX, "op": "SCMP_CMP_EQ"}]);
    let rules = json!([
        rule("getpid", 5, json!([])),
        rule("execve", 6, json!([])),
        rule("rt_sigaction", 7, json!([])),
        rule("setuid", 8, minus_one),
    ]);
    let profile = profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": architectures,
        "syscalls": rules,
    }));
    compile(&profile, machine, MaskedEqual::ValueIsMask).unwrap()
}

#[test]
fn architectures_of_x86() {
    const ALL: &[&str] = &["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_AARCH64"];
    let check = |architectures: &[&str], arch: u32, number: u32, expect: u32| {
        let filter = everywhere(architectures, Machine::X86_64);
        assert_eq!(
            judge(&filter, arch, number, &[0xffff_ffff]),
            expect,
            "{arch:#x} {number} {architectures:?}"
        );
    };
    for architectures in [&[][..], &["SCMP_ARCH_X86_64"], ALL] {
        check(architectures, X86_64, 39, errno(5));
        check(architectures, X86_64, 59, errno(6));
        check(architectures, X86_64, 13, errno(7));
        check(architectures, X86_64, 105, ENOSYS); // −1 has 64 bits.
        check(architectures, X86_64, 20, ENOSYS);
        check(architectures, X86_64, 512, ENOSYS);
        check(architectures, X86_64, 520, ENOSYS);
        check(architectures, X86_64, X32_BIT - 1, ENOSYS);
        check(architectures, X86_64, u32::MAX, ENOSYS);
        check(architectures, AARCH64, 172, KILL);
        check(architectures, ARM, 20, KILL);
    }
    for architectures in [&[][..], &["SCMP_ARCH_X32"]] {
        check(architectures, I386, 20, KILL);
        check(architectures, I386, 39, KILL);
    }
    for architectures in [&["SCMP_ARCH_X86"][..], ALL] {
        check(architectures, I386, 20, errno(5));
        check(architectures, I386, 11, errno(6));
        check(architectures, I386, 174, errno(7));
        check(architectures, I386, 23, errno(8));
        check(architectures, I386, 39, ENOSYS);
        check(architectures, I386, X32_BIT | 20, ENOSYS);
    }
    for architectures in [&[][..], &["SCMP_ARCH_X86"]] {
        for number in [0, 39, 520, 0xbfff_fffe] {
            check(architectures, X86_64, X32_BIT + number, KILL);
        }
    }
    for architectures in [&["SCMP_ARCH_X32"][..], ALL] {
        check(architectures, X86_64, X32_BIT | 39, errno(5));
        check(architectures, X86_64, X32_BIT | 520, errno(6));
        check(architectures, X86_64, X32_BIT | 512, errno(7));
        check(architectures, X86_64, X32_BIT | 105, errno(8));
        for number in [0, 13, 59, 548] {
            check(architectures, X86_64, X32_BIT | number, ENOSYS);
        }
    }
}

#[test]
fn no_rules() {
    let architectures = ["SCMP_ARCH_X86", "SCMP_ARCH_X32"];
    let profile = profile(json!({"defaultAction": "SCMP_ACT_LOG", "architectures": architectures}));
    let filter = compile(&profile, Machine::X86_64, MaskedEqual::ValueIsMask).unwrap();
    for number in [0, 39, X32_BIT, X32_BIT | 520, u32::MAX] {
        assert_eq!(judge(&filter, X86_64, number, &[]), libc::SECCOMP_RET_LOG);
        assert_eq!(judge(&filter, I386, number, &[]), libc::SECCOMP_RET_LOG);
        assert_eq!(judge(&filter, AARCH64, number, &[]), KILL);
    }
}

#[test]
fn architectures_of_arm() {
    let check = |architectures: &[&str], arch: u32, number: u32, expect: u32| {
        let filter = everywhere(architectures, Machine::Aarch64);
        assert_eq!(judge(&filter, arch, number, &[u64::MAX]), expect, "{arch:#x} {number} {architectures:?}");
    };
    for architectures in [&[][..], &["SCMP_ARCH_ARM"]] {
        check(architectures, AARCH64, 172, errno(5));
        check(architectures, AARCH64, 221, errno(6));
        check(architectures, AARCH64, 146, errno(8));
        check(architectures, AARCH64, 20, ENOSYS);
        check(architectures, AARCH64, X32_BIT | 172, ENOSYS);
        check(architectures, X86_64, 39, KILL);
    }
    check(&["SCMP_ARCH_ARM"], ARM, 20, errno(5));
    check(&["SCMP_ARCH_ARM"], ARM, 172, ENOSYS);
    check(&["SCMP_ARCH_X86"], ARM, 20, KILL);
}

#[test]
fn numbers_of_calls() {
    let check = |name: &str, expect: [Option<u32>; 4]| {
        for (abi, expect) in [Abi::X86_64, Abi::X86, Abi::Aarch64, Abi::Arm].into_iter().zip(expect) {
            let number = abi.calls().into_iter().find_map(|(call, number)| (call == name).then_some(number));
            assert_eq!(number, expect, "{name} of {abi:?}");
        }
    };
    check("read", [Some(0), Some(3), Some(63), Some(3)]);
    check("_llseek", [None, Some(140), None, Some(140)]);
    check("_newselect", [None, Some(142), None, Some(142)]);
    check("_sysctl", [Some(156), Some(149), None, Some(149)]);
    check("newfstatat", [Some(262), None, Some(79), None]);
    check("fstatat64", [None, Some(300), None, Some(327)]);
    check("fadvise64", [Some(221), Some(250), Some(223), None]);
    check("fadvise64_64", [None, Some(272), None, None]);
    check("arm_fadvise64_64", [None, None, None, Some(270)]);
    check("sync_file_range", [Some(277), Some(314), Some(84), None]);
    check("sync_file_range2", [None, None, None, Some(341)]);
    check("arm_sync_file_range", [None, None, None, Some(341)]);
    check("breakpoint", [None, None, None, Some(983_041)]);
    check("cacheflush", [None, None, None, Some(983_042)]);
    check("set_tls", [None, None, None, Some(983_045)]);
    check("umount", [None, Some(22), None, None]);
    check("umount2", [Some(166), Some(52), Some(39), Some(52)]);
    check("ugetrlimit", [None, Some(191), None, Some(191)]);
    check("break", [None, Some(17), None, None]);
    check("pread64", [Some(17), Some(180), Some(67), Some(180)]);
    check("sendfile64", [None, Some(239), None, Some(239)]);
    check("clone3", [Some(435); 4]);
    check("file_setattr", [Some(469); 4]);
    check("no_such_call", [None; 4]);
}

#[test]
fn names_of_the_default_profile_are_calls() {
    let calls = [Abi::X86_64, Abi::X86, Abi::Aarch64, Abi::Arm].map(Abi::calls).concat();
    for machine in [Machine::X86_64, Machine::Aarch64] {
        for name in default_profile(CapSet::EMPTY, machine).syscalls.iter().flat_map(|rule| &rule.names) {
            assert!(calls.iter().any(|(call, _)| call == name), "{name}");
        }
    }
}

#[test]
fn the_default_profile() {
    const NEWUSER: u64 = 0x1000_0000;
    const AF_ALG: u64 = 38;
    let check = |machine: Machine, arch: u32, calls: [u32; 5]| {
        let profile = default_profile(CapSet::EMPTY, machine);
        let filter = compile(&profile, machine, MaskedEqual::ValueIsMask).unwrap();
        assert!(filter.instructions.len() < 600, "{machine:?} {}", filter.instructions.len());
        let [read, clone, clone3, socket, keyctl] = calls;
        let judge = |number: u32, args: &[u64]| judge(&filter, arch, number, args);
        assert_eq!(judge(read, &[]), ALLOW);
        assert_eq!(judge(clone, &[NEWUSER | 17]), EPERM);
        assert_eq!(judge(clone, &[0x0120_0011]), ALLOW);
        assert_eq!(judge(clone3, &[]), ENOSYS);
        assert_eq!(judge(socket, &[AF_ALG]), EPERM);
        assert_eq!(judge(socket, &[2]), ALLOW);
        assert_eq!(judge(keyctl, &[]), EPERM);
        assert_eq!(judge(9999, &[]), ENOSYS);
        if arch == I386 {
            for (number, argument) in (0..32).flat_map(|argument| [(102, argument), (117, argument)]) {
                assert_eq!(judge(number, &[argument]), ALLOW, "{number}({argument})");
            }
        }
    };
    check(Machine::X86_64, X86_64, [0, 56, 435, 41, 250]);
    check(Machine::X86_64, X86_64, [0, 56, 435, 41, 250].map(|number| number | X32_BIT));
    check(Machine::X86_64, I386, [3, 120, 435, 359, 288]);
    check(Machine::Aarch64, AARCH64, [63, 220, 435, 198, 219]);
    check(Machine::Aarch64, ARM, [3, 120, 435, 281, 311]);
}

/// Every verdict of the default profile, against a reading of its rules one by one.
#[test]
fn the_search_finds_every_number() {
    let profile = default_profile(CapSet::EMPTY, Machine::X86_64);
    let filter = compile(&profile, Machine::X86_64, MaskedEqual::ValueIsMask).unwrap();
    let rules = Rules::parse(&profile, MaskedEqual::ValueIsMask).unwrap();
    for abi in [Abi::X86_64, Abi::X86, Abi::X32] {
        let calls = abi.calls();
        for number in (0..600).map(|number| number | if abi == Abi::X32 { X32_BIT } else { 0 }) {
            let name = calls.iter().find_map(|(name, call)| (*call == number).then_some(*name));
            let rule = rules.named().find_map(|(ruled, rule)| (Some(ruled) == name).then_some(rule));
            let expect = match rule {
                Some(rule) if rule.conditions.is_empty() => rule.verdict,
                Some(_) => continue,
                None => ENOSYS,
            };
            assert_eq!(judge(&filter, abi.audit(), number, &[]), expect, "{abi:?} {number} {name:?}");
        }
    }
}

/// Every call with conditions of its own: jumps go far beyond 255 instructions.
#[test]
fn long_programs() {
    let calls = Abi::X86_64.calls();
    let filter = |conditions: u64| {
        let rules: Vec<Value> = calls
            .iter()
            .flat_map(|(name, number)| {
                (0..conditions).map(move |value| {
                    let args =
                        json!([{"index": 2, "value": u64::from(*number) + value, "op": "SCMP_CMP_EQ"}]);
                    rule(name, number + 1, args)
                })
            })
            .collect();
        let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
        compile(&profile, Machine::X86_64, MaskedEqual::ValueIsMask)
    };
    let short = filter(1).unwrap();
    assert!(short.instructions.len() > 2000);
    for (_, number) in &calls {
        let arg = u64::from(*number);
        assert_eq!(judge(&short, X86_64, *number, &[0, 0, arg]), errno(number + 1));
        assert_eq!(judge(&short, X86_64, *number, &[0, 0, arg + 1]), ALLOW);
    }
    let error = filter(3).unwrap_err();
    assert!(matches!(error, FilterError::TooLong(4097..)), "{error}");
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

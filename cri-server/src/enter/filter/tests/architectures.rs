//! Architectures, the numbers that they give to calls, and whole profiles.

use super::*;

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

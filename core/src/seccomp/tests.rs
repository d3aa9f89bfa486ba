use alloc::{borrow::ToOwned as _, format, string::String, vec, vec::Vec};

use proptest::prelude::*;

use super::{
    Abi, Action, Comparison, Condition, ENOSYS, Instruction, Machine, Profile, ProfileError, Rule,
    SYSCALLS, Syscall, compile, default_profile, parse_profile,
};
use crate::container::capability::{ALL, Capabilities, DEFAULT, named};

/// Runs a filter as the kernel does.
fn kernel(program: &[Instruction], audit: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = vec![number, audit, 0, 0];
    for arg in args {
        data.extend([(arg & 0xffff_ffff) as u32, (arg >> 32) as u32]);
    }
    let (mut at, mut accumulator) = (0, 0);
    for _ in 0..program.len() {
        let it = program[at];
        at += 1;
        let holds = match it.code {
            0x06 => return it.constant,
            0x20 => {
                accumulator = data[it.constant as usize / 4];
                continue;
            }
            0x54 => {
                accumulator &= it.constant;
                continue;
            }
            0x05 => {
                at += it.constant as usize;
                continue;
            }
            0x15 => accumulator == it.constant,
            0x25 => accumulator > it.constant,
            0x35 => accumulator >= it.constant,
            code => panic!("no such operation: {code:#x}"),
        };
        at += usize::from(if holds { it.then } else { it.otherwise });
    }
    panic!("the program does not end");
}

fn number(abi: Abi, name: &str) -> u32 {
    abi.number(Syscall::named(name).unwrap()).unwrap()
}

fn default_says(machine: Machine, abi: Abi, caps: Capabilities, name: &str, arg: u64) -> u32 {
    let program = compile(&default_profile(machine, caps), machine).unwrap();
    let args = [arg, 0, 0, 0, 0, 0];
    kernel(&program, abi.audit(), number(abi, name), args)
}

const ALLOW: u32 = 0x7fff_0000;
const REFUSE: u32 = 0x0005_0001;
const NOT_THERE: u32 = 0x0005_0026;

const NATIVE: [(Machine, Abi); 2] = [
    (Machine::X86_64, Abi::X86_64),
    (Machine::Aarch64, Abi::Aarch64),
];

#[test]
fn the_table_is_sorted_and_has_no_number_twice() {
    assert!(SYSCALLS.is_sorted_by(|(one, _), (two, _)| one < two));
    for abi in [Abi::X86_64, Abi::I386, Abi::Aarch64, Abi::Arm] {
        let mut numbers: Vec<_> = (0..SYSCALLS.len() as u16)
            .filter_map(|at| abi.number(Syscall(at)))
            .collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "{abi:?}");
        assert!(count > 300, "{abi:?}");
    }
    // Some that are well known.
    assert_eq!(number(Abi::X86_64, "execve"), 59);
    assert_eq!(number(Abi::I386, "execve"), 11);
    assert_eq!(number(Abi::Aarch64, "execve"), 221);
    assert_eq!(number(Abi::Arm, "execve"), 11);
    assert_eq!(number(Abi::Aarch64, "keyctl"), 219);
    assert_eq!(number(Abi::Arm, "unshare"), 337);
}

#[test]
fn the_default_refuses_what_docker_refuses() {
    for (machine, abi) in NATIVE {
        for name in [
            "add_key",
            "keyctl",
            "request_key",
            "mount",
            "umount2",
            "pivot_root",
            "unshare",
            "setns",
            "reboot",
            "kexec_load",
            "init_module",
            "finit_module",
            "delete_module",
            "swapon",
            "swapoff",
            "settimeofday",
            "clock_settime",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "open_by_handle_at",
            "acct",
            "syslog",
            "io_uring_setup",
            "move_pages",
            "mbind",
            "sethostname",
            "fsopen",
            "vhangup",
            "quotactl",
            "lookup_dcookie",
            "kcmp",
            "nfsservctl",
        ] {
            assert_eq!(
                default_says(machine, abi, DEFAULT, name, 0),
                REFUSE,
                "{name} on {abi:?}"
            );
        }
        for name in [
            "read",
            "openat",
            "execve",
            "exit_group",
            "futex",
            "mmap",
            "clock_gettime",
            "ptrace",
            "chroot",
            "mknodat",
            "prctl",
            "capset",
            "setresuid",
            "seccomp",
            "faccessat2",
            "statx",
            "landlock_create_ruleset",
            "memfd_create",
            "socketpair",
            "rseq",
            "futex_waitv",
        ] {
            assert_eq!(
                default_says(machine, abi, DEFAULT, name, 0),
                ALLOW,
                "{name} on {abi:?}"
            );
        }
        assert_eq!(default_says(machine, abi, DEFAULT, "clone3", 0), NOT_THERE);
        // What is newer than everything known does not exist.
        let program = compile(&default_profile(machine, DEFAULT), machine).unwrap();
        for new in [500, 4000, 0x4000_0000, u32::MAX] {
            assert_eq!(
                kernel(&program, abi.audit(), new, [0; 6]),
                NOT_THERE,
                "{new}"
            );
        }
    }
    let x86 = |name| default_says(Machine::X86_64, Abi::X86_64, DEFAULT, name, 0);
    assert_eq!(
        (x86("arch_prctl"), x86("iopl"), x86("ioperm")),
        (ALLOW, REFUSE, REFUSE)
    );
    assert_eq!(x86("modify_ldt"), ALLOW);
}

#[test]
fn the_default_looks_at_arguments() {
    for (machine, abi) in NATIVE {
        let says = |name, arg| default_says(machine, abi, DEFAULT, name, arg);
        // Families: unix, inet, netlink, and the way to the host.
        for (family, expected) in [
            (1, ALLOW),
            (2, ALLOW),
            (16, ALLOW),
            (40, REFUSE),
            (0x1_0000_0028, REFUSE),
        ] {
            assert_eq!(says("socket", family), expected, "{family}");
        }
        for (persona, expected) in [
            (0, ALLOW),
            (8, ALLOW),
            (0x2_0000, ALLOW),
            (0x2_0008, ALLOW),
            (0xffff_ffff, ALLOW),
            (0x004_0000, REFUSE),
            (1 << 40, REFUSE),
        ] {
            assert_eq!(says("personality", persona), expected, "{persona:#x}");
        }
        for (flags, expected) in [
            (17, ALLOW),
            (0x003d_0f00, ALLOW),
            (0x1000_0011, REFUSE),
            (0x0002_0000, REFUSE),
            (0x4000_0000, REFUSE),
        ] {
            assert_eq!(says("clone", flags), expected, "{flags:#x}");
        }
    }
}

#[test]
fn capabilities_open_their_calls() {
    let with = |name: &str| Capabilities(DEFAULT.0 | named(name).unwrap().0);
    for (capability, call) in [
        ("SYS_ADMIN", "mount"),
        ("SYS_ADMIN", "unshare"),
        ("SYS_ADMIN", "clone3"),
        ("SYS_TIME", "clock_settime"),
        ("SYS_MODULE", "init_module"),
        ("SYS_BOOT", "reboot"),
        ("SYS_PTRACE", "kcmp"),
        ("SYSLOG", "syslog"),
        ("SYS_NICE", "mbind"),
        ("BPF", "bpf"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
    ] {
        for (machine, abi) in NATIVE {
            let said = default_says(machine, abi, with(capability), call, 0);
            assert_eq!(said, ALLOW, "{call} with {capability}");
        }
    }
    let says = |caps, flags| default_says(Machine::X86_64, Abi::X86_64, caps, "clone", flags);
    assert_eq!(says(with("SYS_ADMIN"), 0x1000_0000), ALLOW);
    let chroot = default_says(Machine::X86_64, Abi::X86_64, Capabilities(0), "chroot", 0);
    assert_eq!(chroot, REFUSE);
    assert_eq!(says(ALL, 0x1000_0000), ALLOW);
}

#[test]
fn programs_of_32_bits_have_the_same_rules() {
    for (machine, abi) in [(Machine::X86_64, Abi::I386), (Machine::Aarch64, Abi::Arm)] {
        let says = |name| default_says(machine, abi, DEFAULT, name, 0);
        for name in [
            "read",
            "mmap2",
            "fstat64",
            "clock_gettime64",
            "ugetrlimit",
            "_llseek",
        ] {
            assert_eq!(says(name), ALLOW, "{name}");
        }
        for name in ["mount", "keyctl", "unshare", "reboot"] {
            assert_eq!(says(name), REFUSE, "{name}");
        }
    }
    let arm = |name| default_says(Machine::Aarch64, Abi::Arm, DEFAULT, name, 0);
    assert_eq!(
        (arm("set_tls"), arm("cacheflush"), arm("breakpoint")),
        (ALLOW, ALLOW, ALLOW)
    );
    let program = compile(
        &default_profile(Machine::Aarch64, DEFAULT),
        Machine::Aarch64,
    )
    .unwrap();
    for odd in [0x1_0000, 0xf_0000, 0xf_0003, 0xf_0006] {
        assert_eq!(
            kernel(&program, Abi::Arm.audit(), odd, [0; 6]),
            NOT_THERE,
            "{odd:#x}"
        );
    }
    // Neither machine runs the other's programs.
    assert_eq!(
        kernel(&program, Abi::X86_64.audit(), 0, [0; 6]),
        0x8000_0000
    );
}

#[test]
fn filters_are_short() {
    for machine in [Machine::X86_64, Machine::Aarch64] {
        for caps in [DEFAULT, ALL, Capabilities(0)] {
            let program = compile(&default_profile(machine, caps), machine).unwrap();
            assert!(program.len() < 700, "{}", program.len());
        }
    }
}

const SMALL: &str = r#"{
  "defaultAction": "SCMP_ACT_ALLOW",
  "architectures": ["SCMP_ARCH_X86_64"],
  "syscalls": [
    {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
    {"name": "kill", "action": "SCMP_ACT_KILL_PROCESS", "args": [
      {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 15, "op": "SCMP_CMP_EQ"}]},
    {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_FOWNER"]}},
    {"names": ["chown"], "action": "SCMP_ACT_ERRNO", "includes": {"arches": ["arm64"]}},
    {"names": ["sync"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "9.1"}}
  ]
}"#;

fn parsed(text: &str, caps: Capabilities) -> Result<Profile, ProfileError> {
    parse_profile(text, Machine::X86_64, caps, (6, 1))
}

#[test]
fn a_profile_of_ones_own() {
    let program = |caps| compile(&parsed(SMALL, caps).unwrap(), Machine::X86_64).unwrap();
    let says = |name: &str, second: u64| {
        let (program, abi) = (program(DEFAULT), Abi::X86_64);
        kernel(
            &program,
            abi.audit(),
            number(abi, name),
            [0, second, 0, 0, 0, 0],
        )
    };
    assert_eq!(
        (says("mkdir", 0), says("mkdirat", 0)),
        (0x0005_000d, 0x0005_000d)
    );
    assert_eq!(
        (says("kill", 9), says("kill", 15)),
        (0x8000_0000, 0x8000_0000)
    );
    assert_eq!((says("kill", 2), says("rmdir", 0)), (ALLOW, ALLOW));
    assert_eq!(
        (says("chmod", 0), says("chown", 0), says("sync", 0)),
        (ALLOW, ALLOW, ALLOW)
    );
    // The default lets things through, new calls as well.
    assert_eq!(
        kernel(&program(DEFAULT), Abi::X86_64.audit(), 4000, [0; 6]),
        ALLOW
    );
    let bare = program(Capabilities(0));
    let chmod = number(Abi::X86_64, "chmod");
    assert_eq!(kernel(&bare, Abi::X86_64.audit(), chmod, [0; 6]), REFUSE);
}

#[test]
fn calls_by_other_numbers_do_not_pass_a_profile_that_lets_all_others_through() {
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let profile = parsed(text, DEFAULT).unwrap();
    let program = compile(&profile, Machine::X86_64).unwrap();
    let says = |number| kernel(&program, Abi::X86_64.audit(), number, [0; 6]);
    assert_eq!((says(165), says(39)), (REFUSE, ALLOW));
    assert_eq!(says(0x4000_00a5), NOT_THERE);
    assert_eq!(says(0x4000_0027), NOT_THERE);
}

#[test]
fn what_is_no_profile_is_refused() {
    let error = |text: &str| parsed(text, DEFAULT).unwrap_err();
    assert!(matches!(error("{}"), ProfileError::Json(_)));
    assert!(matches!(error("[]"), ProfileError::Json(_)));
    assert_eq!(
        error(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#),
        ProfileError::Action("SCMP_ACT_NOTIFY".to_owned())
    );
    let with = |argument: &str| {
        error(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{argument}]}}]}}"#
        ))
    };
    assert_eq!(
        with(r#"{"index":0,"value":1,"op":"EQ"}"#),
        ProfileError::Comparison("EQ".to_owned())
    );
    assert_eq!(
        with(r#"{"index":6,"value":1,"op":"SCMP_CMP_EQ"}"#),
        ProfileError::Argument(6)
    );
    let long = format!("{}{}", SMALL, " ".repeat(600_000));
    assert!(matches!(error(&long), ProfileError::TooLong(_)));
}

/// The meaning of a profile, without a program.
fn meaning(profile: &Profile, abi: Abi, number: u32, args: [u64; 6]) -> Action {
    let names = |rule: &Rule| {
        rule.calls
            .iter()
            .any(|&call| abi.number(call) == Some(number))
    };
    let holds = |condition: &Condition| {
        let arg = args[usize::from(condition.index)];
        match condition.comparison {
            Comparison::Equal => arg == condition.value,
            Comparison::NotEqual => arg != condition.value,
            Comparison::Less => arg < condition.value,
            Comparison::LessOrEqual => arg <= condition.value,
            Comparison::Greater => arg > condition.value,
            Comparison::GreaterOrEqual => arg >= condition.value,
            Comparison::MaskedEqual => arg & condition.value == condition.second,
        }
    };
    let decided = profile
        .rules
        .iter()
        .find(|rule| names(rule) && rule.conditions.iter().all(holds));
    let all = profile.rules.iter().flat_map(|rule| &rule.calls);
    let newest = all
        .filter_map(|&call| abi.number(call))
        .filter(|&n| n < 0x1_0000)
        .max();
    let lenient = profile.otherwise.lets_through();
    match decided {
        _ if abi == Abi::X86_64 && number >= 0x4000_0000 && lenient => Action::Errno(ENOSYS),
        Some(rule) => rule.action,
        None if newest.is_some_and(|newest| number <= newest) => profile.otherwise,
        None if all_private(profile, abi, number) => profile.otherwise,
        None if profile.otherwise.lets_through() => profile.otherwise,
        None => Action::Errno(ENOSYS),
    }
}

/// Whether a call beyond all others is named, under conditions.
fn all_private(profile: &Profile, abi: Abi, number: u32) -> bool {
    let mut calls = profile.rules.iter().flat_map(|rule| &rule.calls);
    calls.any(|&call| abi.number(call) == Some(number))
}

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..4,
        any::<u64>(),
        (0_u64..3, 0_u64..3).prop_map(|(high, low)| high << 32 | low),
        Just(u64::MAX),
        Just(0xffff_ffff),
    ]
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::Log),
        (0_u16..200).prop_map(Action::Errno),
        Just(Action::Trap),
        Just(Action::KillProcess),
    ]
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let comparison = prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessOrEqual),
        Just(Comparison::Greater),
        Just(Comparison::GreaterOrEqual),
        Just(Comparison::MaskedEqual),
    ];
    (0_u8..6, comparison, any_value(), any_value()).prop_map(
        |(index, comparison, value, second)| Condition {
            index,
            comparison,
            value,
            second,
        },
    )
}

fn any_profile() -> impl Strategy<Value = Profile> {
    let calls = prop::collection::vec((0..SYSCALLS.len() as u16).prop_map(Syscall), 0..40);
    let conditions = prop::collection::vec(any_condition(), 0..4);
    let rule = (calls, any_action(), conditions).prop_map(|(calls, action, conditions)| Rule {
        calls,
        action,
        conditions,
    });
    (any_action(), prop::collection::vec(rule, 0..6))
        .prop_map(|(otherwise, rules)| Profile { otherwise, rules })
}

proptest! {
    #[test]
    fn a_program_means_what_its_profile_means(
        profile in any_profile(),
        numbers in prop::collection::vec(prop_oneof![0_u32..500, any::<u32>(), 0xf_0000_u32..0xf_0008], 8),
        args in prop::array::uniform6(any_value()),
    ) {
        for machine in [Machine::X86_64, Machine::Aarch64] {
            let Ok(program) = compile(&profile, machine) else { continue };
            for abi in machine.abis() {
                let named = profile.rules.iter().flat_map(|rule| &rule.calls).take(20);
                let named: Vec<u32> = named.filter_map(|&call| abi.number(call)).collect();
                for &number in numbers.iter().chain(&named) {
                    let expected = meaning(&profile, abi, number, args).value();
                    prop_assert_eq!(kernel(&program, abi.audit(), number, args), expected);
                }
            }
        }
    }

    #[test]
    fn no_text_breaks_the_parser(text in "\\PC{0,200}", at in 0..SMALL.len(), byte in any::<u8>()) {
        let _ = parsed(&text, DEFAULT);
        let mut bytes = SMALL.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes)
            && let Ok(profile) = parsed(&text, ALL)
        {
            let _ = compile(&profile, Machine::X86_64);
        }
    }
}

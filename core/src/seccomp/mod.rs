//! Which system calls a container may make: docker's default profile, profiles in docker's JSON
//! format, and their translation into the filter program that the kernel runs.
//!
//! A [`Profile`] is a list of rules for system calls by name. [`compile`] turns it into a classic
//! BPF program for a machine's own system calls and those of its 32-bit programs.

mod assemble;
mod default;
mod json;
mod syscalls;
#[cfg(test)]
mod tests;

use alloc::{collections::BTreeMap, vec::Vec};

pub use assemble::{Instruction, MAX_INSTRUCTIONS, TooLong, compile};
pub use default::default_profile;
pub use json::{MAX_PROFILE, ProfileError, parse_profile};

use syscalls::SYSCALLS;

/// The error number that a refused call gives by default: `EPERM`.
pub const EPERM: u16 = 1;
/// The error number of a system call that does not exist.
pub const ENOSYS: u16 = 38;

/// A machine that containers run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86-64, with 32-bit x86 programs.
    X86_64,
    /// 64-bit Arm, with 32-bit Arm programs.
    Aarch64,
}

impl Machine {
    /// The machine of an architecture as Rust and `uname` call it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "x86_64" | "amd64" => Some(Self::X86_64),
            "aarch64" | "arm64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// The word of docker's profiles.
    fn word(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The two sets of system calls: 64-bit programs', then 32-bit programs'.
    fn abis(self) -> [Abi; 2] {
        match self {
            Self::X86_64 => [Abi::X86_64, Abi::I386],
            Self::Aarch64 => [Abi::Aarch64, Abi::Arm],
        }
    }
}

/// A set of system calls; the number is its column in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Abi {
    X86_64 = 0,
    I386 = 1,
    Aarch64 = 2,
    Arm = 3,
}

impl Abi {
    /// The `AUDIT_ARCH_…` by which the kernel names it.
    fn audit(self) -> u32 {
        const SIXTY_FOUR_BITS: u32 = 0x8000_0000;
        const LITTLE_ENDIAN: u32 = 0x4000_0000;
        match self {
            Self::X86_64 => SIXTY_FOUR_BITS | LITTLE_ENDIAN | 0x3e,
            Self::I386 => LITTLE_ENDIAN | 0x03,
            Self::Aarch64 => SIXTY_FOUR_BITS | LITTLE_ENDIAN | 0xb7,
            Self::Arm => LITTLE_ENDIAN | 0x28,
        }
    }

    /// The number of a system call of the table.
    fn number(self, call: Syscall) -> Option<u32> {
        let (_, numbers) = SYSCALLS.get(usize::from(call.0))?;
        u32::try_from(*numbers.get(self as usize)?).ok()
    }
}

/// A system call, as its place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Syscall(u16);

impl Syscall {
    /// Looks a name up.
    fn named(name: &str) -> Option<Self> {
        let found = SYSCALLS.binary_search_by_key(&name, |(known, _)| known);
        found.ok().and_then(|at| u16::try_from(at).ok()).map(Self)
    }
}

/// What happens to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Allow,
    /// It is made and logged.
    Log,
    /// It fails with this error number.
    Errno(u16),
    /// The process gets `SIGSYS`.
    Trap,
    /// A tracer decides; without one the call fails with `ENOSYS`.
    Trace(u16),
    /// The thread dies.
    KillThread,
    /// The process dies.
    KillProcess,
}

impl Action {
    /// The filter's return value for the kernel.
    fn value(self) -> u32 {
        match self {
            Self::Allow => 0x7fff_0000,
            Self::Log => 0x7ffc_0000,
            Self::Errno(number) => 0x0005_0000 | u32::from(number),
            Self::Trap => 0x0003_0000,
            Self::Trace(number) => 0x7ff0_0000 | u32::from(number),
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
        }
    }

    /// Whether the call is made.
    fn lets_through(self) -> bool {
        matches!(self, Self::Allow | Self::Log | Self::Trace(_))
    }
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The bits of `value` in the argument equal `second`.
    MaskedEqual,
}

/// A condition on one argument of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    /// Which argument, 0 to 5.
    index: u8,
    comparison: Comparison,
    value: u64,
    second: u64,
}

/// What happens to some system calls when all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    calls: Vec<Syscall>,
    action: Action,
    conditions: Vec<Condition>,
}

/// Rules, the first that fits deciding, and what happens to everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    otherwise: Action,
    rules: Vec<Rule>,
}

/// A rule as it holds for one system call.
type Decision<'a> = (&'a [Condition], Action);

impl Profile {
    /// The rules by number for one set of system calls.
    fn by_number(&self, abi: Abi) -> BTreeMap<u32, Vec<Decision<'_>>> {
        let mut table: BTreeMap<u32, Vec<Decision<'_>>> = BTreeMap::new();
        for rule in &self.rules {
            for number in rule.calls.iter().filter_map(|&call| abi.number(call)) {
                let decisions = table.entry(number).or_default();
                // What stands behind an unconditional rule is never reached.
                if decisions
                    .last()
                    .is_none_or(|(conditions, _)| !conditions.is_empty())
                {
                    decisions.push((&rule.conditions, rule.action));
                }
            }
        }
        table
    }

    /// What happens to system calls that are newer than all that the profile knows: programs take
    /// "not implemented" as a reason to do it the old way, and "not permitted" as an error.
    fn unheard_of(&self) -> Action {
        if self.otherwise.lets_through() {
            self.otherwise
        } else {
            Action::Errno(ENOSYS)
        }
    }
}

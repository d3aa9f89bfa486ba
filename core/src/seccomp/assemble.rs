//! From a profile to the program of a filter (`seccomp(2)`, `linux/filter.h`).

use alloc::{collections::BTreeMap, vec, vec::Vec};

use super::{Abi, Action, Comparison, Condition, Decision, ENOSYS, Machine, Profile};

/// Longest program that the kernel takes.
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Numbers above this are an architecture's private calls, far from all others.
const PRIVATE_CALLS: u32 = 0x1_0000;

/// Numbers from this on are those of programs with 64-bit registers and 32-bit addresses.
const X32_CALLS: u32 = 0x4000_0000;

// `struct seccomp_data`: number, architecture, instruction pointer, six arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// One instruction, `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to leave out when a comparison holds.
    pub then: u8,
    /// Instructions to leave out when it does not.
    pub otherwise: u8,
    /// The constant.
    pub constant: u32,
}

/// The profile has more conditions than a filter has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the seccomp profile needs a filter of {0} instructions; the kernel takes {MAX_INSTRUCTIONS}"
)]
pub struct TooLong(pub usize);

/// The filter for a machine's programs, 64-bit and 32-bit. Programs of any other kind are killed.
pub fn compile(profile: &Profile, machine: Machine) -> Result<Vec<Instruction>, TooLong> {
    let mut program = vec![plain(LOAD, ARCHITECTURE)];
    for abi in machine.abis() {
        let body = filter(profile, abi);
        program.push(jump(JUMP_EQUAL, abi.audit(), 1, 0));
        program.push(skip(body.len()));
        program.extend(body);
    }
    program.extend(leave(Action::KillProcess));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(TooLong(program.len()));
    }
    Ok(program)
}

/// The filter for one set of system calls.
fn filter(profile: &Profile, abi: Abi) -> Vec<Instruction> {
    let table = profile.by_number(abi);
    let mut program = vec![plain(LOAD, NUMBER)];
    let mut ranges = ranges(profile, &table);
    if abi == Abi::X86_64 && profile.otherwise.lets_through() {
        // The same calls under other numbers would pass by the rules.
        ranges.push((X32_CALLS, leave(Action::Errno(ENOSYS)).into()));
    }
    program.extend(search(&ranges));
    program
}

/// What is done from a number on, up to the next range's first one.
type Range = (u32, Vec<Instruction>);

/// The whole space of numbers, cut where something else happens; the first begins at 0.
fn ranges(profile: &Profile, table: &BTreeMap<u32, Vec<Decision<'_>>>) -> Vec<Range> {
    let last = table.keys().rev().find(|&&number| number < PRIVATE_CALLS);
    let unheard_from = last.map_or(0, |last| last + 1);
    let mut ranges: Vec<Range> = Vec::new();
    let mut add = |from: u32, code: Vec<Instruction>| {
        if ranges.last().is_none_or(|(_, before)| *before != code) {
            ranges.push((from, code));
        }
    };
    let elsewhere = |number: u32| {
        let action = if number < unheard_from {
            profile.otherwise
        } else {
            profile.unheard_of()
        };
        leave(action).to_vec()
    };
    let mut next = 0;
    for (&number, decisions) in table {
        if next < unheard_from && next < number {
            add(next, elsewhere(next));
        }
        if number >= PRIVATE_CALLS && next < number {
            add(next.max(unheard_from), elsewhere(unheard_from));
        }
        add(number, decide(decisions, profile.otherwise));
        next = number + 1;
    }
    add(next, elsewhere(next));
    ranges
}

/// A binary search for the range of the number in the accumulator.
fn search(ranges: &[Range]) -> Vec<Instruction> {
    match ranges {
        [] => Vec::new(),
        [(_, code)] => code.clone(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let from = high.first().map_or(0, |(from, _)| *from);
            let (low, high) = (search(low), search(high));
            let mut code = Vec::with_capacity(low.len() + high.len() + 2);
            if let Ok(length) = u8::try_from(low.len()) {
                code.push(jump(JUMP_GREATER_OR_EQUAL, from, length, 0));
            } else {
                code.push(jump(JUMP_GREATER_OR_EQUAL, from, 0, 1));
                code.push(skip(low.len()));
            }
            code.extend(low);
            code.extend(high);
            code
        }
    }
}

/// The first rule whose conditions hold decides.
fn decide(decisions: &[Decision<'_>], otherwise: Action) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (conditions, action) in decisions {
        code.extend(rule(conditions, *action));
        if conditions.is_empty() {
            return code;
        }
    }
    code.extend(leave(otherwise));
    code
}

/// Ends with the action when all conditions hold, else goes on behind the code.
fn rule(conditions: &[Condition], action: Action) -> Vec<Instruction> {
    conditions
        .iter()
        .rev()
        .fold(leave(action).into(), |rest, condition| {
            let mut code = test(*condition, rest.len());
            code.extend(rest);
            code
        })
}

/// Goes on when the condition holds, else leaves out `rest` instructions behind the code.
///
/// Arguments have 64 bits, the machine's words 32. The rest of a rule is at most six tests long.
fn test(condition: Condition, rest: usize) -> Vec<Instruction> {
    let [high, low] = halves(condition.value);
    let at = ARGUMENTS + 8 * u32::from(condition.index);
    let (load_low, load_high) = (plain(LOAD, at), plain(LOAD, at + 4));
    // Distance from behind the instruction `left` before the end of this test.
    let fail = |left: usize| u8::try_from(left + rest).unwrap_or(u8::MAX);
    let pass = |left: usize| u8::try_from(left).unwrap_or(u8::MAX);
    let ordered = |operation: u16, holds: bool| {
        let (yes, no) = if holds {
            (pass(3), fail(2))
        } else {
            (fail(3), pass(2))
        };
        let last = if holds {
            jump(operation, low, pass(0), fail(0))
        } else {
            jump(operation, low, fail(0), pass(0))
        };
        vec![
            load_high,
            jump(JUMP_GREATER, high, yes, 0),
            jump(JUMP_EQUAL, high, 0, no),
            load_low,
            last,
        ]
    };
    match condition.comparison {
        Comparison::Equal => vec![
            load_high,
            jump(JUMP_EQUAL, high, 0, fail(2)),
            load_low,
            jump(JUMP_EQUAL, low, 0, fail(0)),
        ],
        Comparison::NotEqual => vec![
            load_high,
            jump(JUMP_EQUAL, high, 0, pass(2)),
            load_low,
            jump(JUMP_EQUAL, low, fail(0), 0),
        ],
        Comparison::MaskedEqual => {
            let [second_high, second_low] = halves(condition.second);
            vec![
                load_high,
                plain(AND, high),
                jump(JUMP_EQUAL, second_high, 0, fail(3)),
                load_low,
                plain(AND, low),
                jump(JUMP_EQUAL, second_low, 0, fail(0)),
            ]
        }
        Comparison::GreaterOrEqual => ordered(JUMP_GREATER_OR_EQUAL, true),
        Comparison::Greater => ordered(JUMP_GREATER, true),
        Comparison::Less => ordered(JUMP_GREATER_OR_EQUAL, false),
        Comparison::LessOrEqual => ordered(JUMP_GREATER, false),
    }
}

fn halves(value: u64) -> [u32; 2] {
    let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
    let high = u32::try_from(value >> 32).unwrap_or_default();
    [high, low]
}

fn leave(action: Action) -> [Instruction; 1] {
    [plain(RETURN, action.value())]
}

fn skip(count: usize) -> Instruction {
    plain(JUMP, u32::try_from(count).unwrap_or(u32::MAX))
}

fn plain(code: u16, constant: u32) -> Instruction {
    jump(code, constant, 0, 0)
}

fn jump(code: u16, constant: u32, then: u8, otherwise: u8) -> Instruction {
    Instruction {
        code,
        then,
        otherwise,
        constant,
    }
}

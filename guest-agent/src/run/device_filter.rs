//! Which devices a container may open: a small BPF program on its cgroup (version 2).
//!
//! Root in a container may make device nodes, as in docker; without this filter a node of the
//! state disk's number would be the state disk.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use nix::libc;

/// Character devices that may be opened; `None` stands for every minor number. Those of
/// [`super::devices`], terminals, and `/dev/net/tun` (OCI runtime specification, "Default
/// Devices", and docker's list).
const ALLOWED: [(i32, Option<i32>); 10] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
    (10, Some(200)),
];

// Numbers of bpf(2) and linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const DEVICE_BLOCK: i32 = 1;
const DEVICE_CHAR: i32 = 2;

/// One instruction: operation, registers, jump, constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    constant: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const RESULT: u8 = 0;

fn instruction(code: u8, to: u8, from: u8, offset: i16, constant: i32) -> Instruction {
    // The nibbles lie like this on little-endian machines, which all targets are.
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        constant,
    }
}

/// One more device that a container may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Whether it is a block device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Whether it may be read from.
    pub read: bool,
    /// Whether it may be written to.
    pub write: bool,
}

/// The program. Its context is `struct bpf_cgroup_dev_ctx`: access << 16 | kind, major, minor.
fn program(extra: &[Extra]) -> Vec<Instruction> {
    let allow = [
        instruction(MOVE, RESULT, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    let mut code = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(AND_32, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        // Making a node of any kind is fine, opening it is another matter.
        instruction(JUMP_NOT_EQUAL, ACCESS, 0, 2, ACCESS_MKNOD),
    ];
    code.extend(allow);
    for device in extra {
        let refused =
            if device.read { 0 } else { ACCESS_READ } | if device.write { 0 } else { ACCESS_WRITE };
        let kind = if device.block {
            DEVICE_BLOCK
        } else {
            DEVICE_CHAR
        };
        code.extend([
            instruction(JUMP_NOT_EQUAL, KIND, 0, 7, kind),
            instruction(JUMP_NOT_EQUAL, MAJOR, 0, 6, device.major.cast_signed()),
            instruction(JUMP_NOT_EQUAL, MINOR, 0, 5, device.minor.cast_signed()),
            instruction(MOVE_REGISTER, RESULT, ACCESS, 0, 0),
            instruction(AND_32, RESULT, 0, 0, refused),
            instruction(JUMP_NOT_EQUAL, RESULT, 0, 2, 0),
        ]);
        code.extend(allow);
    }
    // Over "deny", to the first device.
    code.push(instruction(JUMP_EQUAL, KIND, 0, 2, DEVICE_CHAR));
    let deny = [
        instruction(MOVE, RESULT, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    code.extend(deny);
    for (major, minor) in ALLOWED {
        match minor {
            Some(minor) => {
                code.push(instruction(JUMP_NOT_EQUAL, MAJOR, 0, 3, major));
                code.push(instruction(JUMP_NOT_EQUAL, MINOR, 0, 2, minor));
            }
            None => code.push(instruction(JUMP_NOT_EQUAL, MAJOR, 0, 2, major)),
        }
        code.extend(allow);
    }
    code.extend(deny);
    code
}

/// Start of the `union bpf_attr` of `BPF_PROG_LOAD`.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Start of the `union bpf_attr` of `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Puts the filter on a cgroup. Fails where the kernel has no BPF for cgroups, or the agent not the
/// right to use it.
pub fn attach(cgroup: &Path, extra: &[Extra]) -> io::Result<()> {
    let group = File::open(cgroup)?;
    let own_program;
    let program = if extra.is_empty() {
        loaded()?
    } else {
        own_program = load(&program(extra))?;
        &own_program
    };
    let attributes = AttachAttributes {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

/// The program in the kernel; loaded once, for every container without devices of its own.
fn loaded() -> io::Result<&'static OwnedFd> {
    static LOADED: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(program) = LOADED.get() {
        return Ok(program);
    }
    let fd = load(&program(&[]))?;
    Ok(LOADED.get_or_init(|| fd))
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: code.len() as u32,
        instructions: code.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    bpf(BPF_PROG_LOAD, &attributes).map(own)
}

#[allow(unsafe_code, reason = "bpf has no safe wrapper")]
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    let pointer: *const T = attributes;
    // SAFETY: both commands only read their attributes, of the length given, and what these point
    // to, which lives until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>()) };
    i32::try_from(result)
        .ok()
        .filter(|&fd| fd >= 0)
        .ok_or_else(io::Error::last_os_error)
}

#[allow(unsafe_code, reason = "the kernel hands over a plain number")]
fn own(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor, close-on-exec, for nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: i64 = 1;
    const CHAR: i64 = 2;
    const READ: i64 = 2;
    const WRITE: i64 = 4;

    /// Executes the program as the kernel would.
    fn allows(kind: i64, access: i64, major: i64, minor: i64) -> bool {
        execute(&program(&[]), kind, access, major, minor)
    }

    fn execute(code: &[Instruction], kind: i64, access: i64, major: i64, minor: i64) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i64; 6];
        let mut at = 0;
        loop {
            let Instruction {
                code: operation,
                registers: names,
                offset,
                constant,
            } = code[at];
            let (to, from) = (usize::from(names & 15), usize::from(names >> 4));
            let constant = i64::from(constant);
            let mut jump = false;
            match operation {
                LOAD_WORD => registers[to] = context[usize::try_from(offset).unwrap() / 4],
                MOVE_REGISTER => registers[to] = registers[from],
                MOVE => registers[to] = constant,
                AND_32 => registers[to] &= constant,
                SHIFT_RIGHT_32 => registers[to] >>= constant,
                JUMP_EQUAL => jump = registers[to] == constant,
                JUMP_NOT_EQUAL => jump = registers[to] != constant,
                EXIT => return registers[0] == 1,
                other => panic!("unknown operation {other:#x}"),
            }
            at += 1 + if jump {
                usize::try_from(offset).unwrap()
            } else {
                0
            };
        }
    }

    #[test]
    fn containers_open_their_devices_and_no_others() {
        for access in [READ, WRITE, READ | WRITE] {
            for (major, minor) in [
                (1, 3),
                (1, 9),
                (5, 0),
                (5, 2),
                (136, 0),
                (136, 7),
                (10, 200),
            ] {
                assert!(allows(CHAR, access, major, minor), "{major}:{minor}");
            }
            // Memory, ports, the console of the machine's first line, disks.
            for (major, minor) in [(1, 1), (1, 4), (4, 64), (5, 3), (10, 201), (254, 0)] {
                assert!(!allows(CHAR, access, major, minor), "{major}:{minor}");
            }
            for (major, minor) in [(254, 0), (1, 3), (8, 0), (136, 0)] {
                assert!(!allows(BLOCK, access, major, minor), "{major}:{minor}");
            }
        }
    }

    #[test]
    fn nodes_may_be_made_but_not_on_the_way_to_opening_them() {
        let mknod = i64::from(ACCESS_MKNOD);
        assert!(allows(BLOCK, mknod, 254, 0));
        assert!(allows(CHAR, mknod, 1, 1));
        assert!(!allows(BLOCK, mknod | READ, 254, 0));
    }

    #[test]
    fn more_devices_with_their_permissions() {
        let extra = |block, major, minor, write| Extra {
            block,
            major,
            minor,
            read: true,
            write,
        };
        let code = program(&[extra(true, 254, 0, false), extra(false, 10, 232, true)]);
        let may = |kind, access, major, minor| execute(&code, kind, access, major, minor);
        assert!(may(BLOCK, READ, 254, 0) && !may(BLOCK, WRITE, 254, 0));
        assert!(!may(BLOCK, READ | WRITE, 254, 0) && !may(BLOCK, READ, 254, 1));
        assert!(!may(CHAR, READ, 254, 0));
        assert!(may(CHAR, READ | WRITE, 10, 232) && !may(CHAR, READ, 10, 233));
        // The ordinary ones still work.
        assert!(may(CHAR, READ | WRITE, 1, 3) && !may(CHAR, READ, 1, 1));
    }
}

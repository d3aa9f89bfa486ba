//! Puts the filter of system calls on this process, which whatever it executes inherits.

use std::io;

use nix::libc;
use vdkr_core::{
    channel::message::Seccomp,
    container::capability::Capabilities,
    seccomp::{Instruction, Machine, compile, default_profile, parse_profile},
};

use super::RunError;

const SET_MODE_FILTER: libc::c_uint = 1;

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Makes the filter for a container with these capabilities. `None` when there is to be none.
pub fn filter(
    seccomp: &Seccomp,
    capabilities: Capabilities,
) -> Result<Option<Vec<Instruction>>, RunError> {
    let setup = |error: &dyn std::fmt::Display| RunError::Setup(error.to_string());
    let machine = Machine::named(std::env::consts::ARCH)
        .ok_or_else(|| setup(&"there is no seccomp filter for this architecture"))?;
    let profile = match seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::Default => default_profile(machine, capabilities),
        Seccomp::Profile(text) => parse_profile(text, machine, capabilities, kernel_version())
            .map_err(|error| setup(&error))?,
    };
    let program = compile(&profile, machine).map_err(|error| setup(&error))?;
    Ok(Some(program))
}

/// Installs a filter for good. Needs `CAP_SYS_ADMIN`, or a process that gains no privileges.
#[allow(unsafe_code, reason = "seccomp has no safe wrapper")]
pub fn install(filter: &[Instruction]) -> Result<(), RunError> {
    let program = Program {
        length: u16::try_from(filter.len()).unwrap_or(u16::MAX),
        instructions: filter.as_ptr(),
    };
    let pointer: *const Program = &raw const program;
    // SAFETY: the kernel copies the program, of the length given, and keeps no pointer to it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, pointer) };
    if result == 0 {
        return Ok(());
    }
    Err(RunError::io("install the seccomp filter")(
        io::Error::last_os_error(),
    ))
}

fn kernel_version() -> (u32, u32) {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

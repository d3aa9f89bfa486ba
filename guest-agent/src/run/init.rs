//! The small first process of a container that asks for one: it passes signals on to the command,
//! buries orphans, and ends as the command ends.

use nix::{
    errno::Errno,
    libc::{self, c_int, pid_t},
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
    unistd::{ForkResult, fork},
};

use super::RunError;

/// Leaves a process behind that is the container's first one; this one, its child, goes on to be
/// the command.
#[allow(
    unsafe_code,
    reason = "fork is only sound in a process with one thread"
)]
pub fn stand_before() -> Result<(), RunError> {
    // Blocked before there is a child, so that its end cannot be missed.
    let all = SigSet::all();
    let step = |error: Errno| RunError::io("start the first process")(error.into());
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).map_err(step)?;
    // SAFETY: this process has never started a thread, so the child has a consistent heap.
    match unsafe { fork() }.map_err(step)? {
        ForkResult::Child => {
            take_foreground();
            let none = SigSet::empty();
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None).map_err(step)
        }
        ForkResult::Parent { child } => {
            close_descriptors();
            std::process::exit(serve(&all, child.as_raw()))
        }
    }
}

/// The command is the foreground of its terminal by itself: what is typed there would otherwise
/// reach it twice, from the terminal and from the first process.
fn take_foreground() {
    let _ = rustix::process::setpgid(None, None);
    // There may be no terminal. The signal for doing this from the background is blocked.
    let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid());
}

/// Streams and pipes are the command's alone, so that they end with it.
#[allow(unsafe_code, reason = "close_range has no safe wrapper")]
fn close_descriptors() {
    // SAFETY: nothing of this process uses a descriptor from here on.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
}

/// Passes signals on until the command has ended; its status. Signals are plain numbers here: those
/// for real time have no names.
fn serve(signals: &SigSet, command: pid_t) -> i32 {
    loop {
        match next_signal(signals) {
            libc::SIGCHLD => {
                if let Some(status) = bury(command) {
                    return status;
                }
            }
            0 => {}
            signal => pass_on(command, signal),
        }
    }
}

/// Waits for a signal; 0 when there was none.
#[allow(
    unsafe_code,
    reason = "the safe wrapper panics at signals without a name"
)]
fn next_signal(signals: &SigSet) -> c_int {
    let mut signal = 0;
    // SAFETY: both point to valid memory of this function's caller and of its own.
    match unsafe { libc::sigwait(signals.as_ref(), &raw mut signal) } {
        0 => signal,
        _ => 0,
    }
}

#[allow(
    unsafe_code,
    reason = "the safe wrapper knows no signals for real time"
)]
fn pass_on(command: pid_t, signal: c_int) {
    // SAFETY: takes numbers only.
    unsafe { libc::kill(command, signal) };
}

/// Buries everybody who is dead; the command's status when it is among them.
fn bury(command: pid_t) -> Option<i32> {
    let mut ended = None;
    loop {
        match next_dead() {
            Ok(Some((pid, status))) => {
                if pid == command {
                    ended = ended.or(Some(exit_status(status)));
                }
            }
            Ok(None) => return ended,
            // Nobody is left.
            Err(Errno::ECHILD) => return ended.or(Some(0)),
            Err(_) => {}
        }
    }
}

#[allow(
    unsafe_code,
    reason = "the safe wrapper fails at ends by signals for real time, after it has buried the dead"
)]
fn next_dead() -> Result<Option<(pid_t, c_int)>, Errno> {
    let mut status = 0;
    // SAFETY: points to valid memory.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some((pid, status))),
        _ => Err(Errno::last()),
    }
}

fn exit_status(status: c_int) -> i32 {
    if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_become_a_status_as_a_shell_has_them() {
        assert_eq!(exit_status(0), 0);
        assert_eq!(exit_status(7 << 8), 7);
        assert_eq!(exit_status(libc::SIGKILL), 137);
        // A signal for real time, which has no name; with a core dump.
        assert_eq!(exit_status(37), 165);
        assert_eq!(exit_status(0x80 | libc::SIGSEGV), 139);
    }
}

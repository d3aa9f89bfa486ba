//! The small first process of a container that asks for one: it passes signals on to the command,
//! buries orphans, and ends as the command ends.

use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
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
            let none = SigSet::empty();
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None).map_err(step)
        }
        ForkResult::Parent { child } => {
            close_descriptors();
            std::process::exit(serve(&all, child))
        }
    }
}

/// Streams and pipes are the command's alone, so that they end with it.
#[allow(unsafe_code, reason = "close_range has no safe wrapper")]
fn close_descriptors() {
    // SAFETY: nothing of this process uses a descriptor from here on.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
}

/// Passes signals on until the command has ended; its status.
fn serve(signals: &SigSet, command: Pid) -> i32 {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = bury(command) {
                    return status;
                }
            }
            Ok(signal) => {
                let _ = kill(command, signal);
            }
            // A signal without a name here, or an interruption.
            Err(_) => {}
        }
    }
}

/// Buries everybody who is dead; the command's status when it is among them.
fn bury(command: Pid) -> Option<i32> {
    let mut ended = None;
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == command => Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) => return ended,
            Err(Errno::ECHILD) => return ended.or(Some(0)),
            _ => None,
        };
        ended = ended.or(status);
    }
}

//! Files that tokio watches and has no type of its own for.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a nonblocking file with the runtime of the current task.
#[allow(
    unsafe_code,
    reason = "tokio cannot know that a file is not replaced under its hands"
)]
pub fn watch(file: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open file for as long as it lives, and `AsyncFd` owns it now.
    unsafe { Ok(AsyncFd::register_with_interest(file, interest)?) }
}

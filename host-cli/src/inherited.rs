//! Files that were open when this process began.

/// What the caller left open, such as a lock that a script holds for the length of its run, is not
/// for a program that outlives it.
pub fn withhold() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for fd in numbers.filter(|fd: &i32| *fd > 2) {
        // SAFETY: no memory is touched, and the descriptor stays open and whose it was; all that
        // changes is that an executed program does not get it. That is wanted of all of them.
        #[allow(
            unsafe_code,
            reason = "descriptors that were inherited come as bare numbers"
        )]
        unsafe {
            nix::libc::fcntl(fd, nix::libc::F_SETFD, nix::libc::FD_CLOEXEC);
        }
    }
}

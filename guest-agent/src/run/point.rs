//! Places in the container where the request wants something mounted. The image's links may lead to
//! them, but not into the kernel's own files, which are masked and made read-only by their paths.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, fstatfs};

/// What `statfs(2)` says of procfs and of sysfs.
const KERNEL_FILES: [u64; 2] = [0x9fa0, 0x6265_6572];

/// Opens a mount point as it is now, making it when it is missing.
pub(super) fn open(target: &Path, directory: bool) -> io::Result<OwnedFd> {
    make(target, directory)?;
    let point = rustix::fs::open(target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let kind = fstatfs(&point)?.f_type;
    if KERNEL_FILES.contains(&u64::try_from(kind).unwrap_or_default()) {
        return Err(io::Error::other(
            "it leads into /proc or /sys, where nothing can be mounted",
        ));
    }
    Ok(point)
}

/// The path of an open file for system calls that take no descriptor.
pub(super) fn path(of: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", of.as_fd().as_raw_fd()).into()
}

fn make(target: &Path, directory: bool) -> io::Result<()> {
    if directory {
        return fs::create_dir_all(target);
    }
    if fs::metadata(target).is_ok() {
        return Ok(());
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(target, flags, Mode::from_raw_mode(0o644))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_but_not_into_the_kernel() {
        let place = tempfile::tempdir().unwrap();
        let real = place.path().join("real");
        symlink(&real, place.path().join("link")).unwrap();
        assert!(open(&place.path().join("link"), true).is_err(), "dangling");
        fs::create_dir(&real).unwrap();
        let point = open(&place.path().join("link"), true).unwrap();
        assert_eq!(fs::read_link(path(&point)).unwrap(), real);
        open(&place.path().join("new/file"), false).unwrap();
        assert!(place.path().join("new/file").is_file());

        for kernel in ["/proc/sys/kernel", "/proc/self", "/sys/kernel"] {
            if !Path::new(kernel).exists() {
                continue;
            }
            let link = place.path().join(kernel.replace('/', "-"));
            symlink(kernel, &link).unwrap();
            let error = open(&link, true).unwrap_err();
            assert!(error.to_string().contains("/proc or /sys"), "{error}");
        }
    }
}

//! The file systems and files of the VM itself.

use std::{fs, io, os::unix::fs::symlink};

use nix::{errno::Errno, mount::mount};

use crate::run::mounts::parse_options;

/// A file system, where it goes, and its options.
type Entry = (&'static str, &'static str, &'static str);

/// What is needed to load modules; moved along by [`super::root::leave_initramfs`].
const EARLY: [Entry; 3] = [
    ("proc", "/proc", "nosuid,nodev,noexec"),
    ("sysfs", "/sys", "nosuid,nodev,noexec"),
    ("devtmpfs", "/dev", "nosuid,mode=755"),
];

const LATE: [Entry; 6] = [
    (
        "devpts",
        "/dev/pts",
        "nosuid,noexec,mode=0620,gid=5,ptmxmode=0666",
    ),
    ("tmpfs", "/dev/shm", "nosuid,nodev,mode=1777"),
    ("mqueue", "/dev/mqueue", "nosuid,nodev,noexec"),
    ("tmpfs", "/run", "nosuid,nodev,mode=755"),
    ("tmpfs", "/tmp", "nosuid,nodev,mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "nosuid,nodev,noexec"),
];

/// Kernel settings that containers of docker find as well: ping and low ports for every user.
const SYSCTLS: [(&str, &str); 3] = [
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("kernel/hostname", "vdkr"),
];

/// Mounts `/proc`, `/sys` and `/dev`.
pub fn early() -> io::Result<()> {
    mount_all(&EARLY)
}

/// Mounts the rest.
pub fn late() -> io::Result<()> {
    mount_all(&LATE)
}

/// Writes what programs expect in `/etc`, `/dev` and among the kernel's settings.
pub fn write_files() -> io::Result<()> {
    for (name, value) in SYSCTLS {
        // A kernel without one of these works.
        let _ = fs::write(format!("/proc/sys/{name}"), value);
    }
    let links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/etc/mtab", "/proc/self/mounts"),
    ];
    fs::create_dir_all("/etc")?;
    for (link, target) in links {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    fs::write("/etc/hosts", "127.0.0.1\tlocalhost vdkr\n::1\tlocalhost\n")
}

fn mount_all(entries: &[Entry]) -> io::Result<()> {
    let mut first_error = Ok(());
    for (kind, target, options) in entries {
        let (flags, data) = parse_options(options.split(','));
        let mounted = fs::create_dir_all(target).and_then(|()| {
            match mount(
                Some(*kind),
                *target,
                Some(*kind),
                flags,
                Some(data.as_str()),
            ) {
                // The kernel mounts devtmpfs by itself when it is configured so.
                Ok(()) | Err(Errno::EBUSY) => Ok(()),
                Err(error) => Err(error.into()),
            }
        });
        if let Err(error) = mounted {
            let error = io::Error::new(error.kind(), format!("{kind} on {target}: {error}"));
            first_error = first_error.and(Err(error));
        }
    }
    first_error
}

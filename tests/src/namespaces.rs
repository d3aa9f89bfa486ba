//! Programs in namespaces of their own, where they may be root.

use std::process::Command;
use std::sync::OnceLock;

use crate::process::tool;

/// Of a user who is root there and mounts what it likes.
const NAMESPACES: [&str; 2] = ["--map-root-user", "--mount"];

/// podman keeps locks in shared memory, names and signatures in places of the system: neither may it meet
/// those of this computer's root, which an ordinary user cannot open, nor leave any there.
const OWN_PLACES: [&str; 4] = [
    "sh",
    "-c",
    "for place in /dev/shm /var/cache /var/lib/containers; do \
     ! test -d $place || mount -t tmpfs tmpfs $place || exit 1; done; exec \"$@\"",
    "sh",
];

/// `unshare` with options, for a program that is to be root and to mount what it likes: in a user
/// namespace, so that it is the same for an ordinary user. The kernel makes none for who has changed its
/// root directory; there root is what it is already.
pub fn as_root() -> Command {
    let mut command = tool("unshare");
    match has_user_namespaces() {
        true => {
            command.args(NAMESPACES).args(OWN_PLACES);
        }
        // Such a root is no mount, which programs want of theirs that make it private.
        false => {
            command.args(["--mount", "--propagation", "unchanged", "sh", "-c"]);
            command.arg(
                "mount --rbind / /mnt && mount --make-rprivate /mnt || exit 1; \
                 test -d /sys/fs/cgroup || { mount -t sysfs sysfs /mnt/sys \
                 && mount -t cgroup2 cgroup2 /mnt/sys/fs/cgroup; } || exit 1; \
                 chroot /mnt \"$@\"; status=$?; umount --lazy /mnt; exit $status",
            );
            command.arg("sh").args(OWN_PLACES);
        }
    }
    command
}

/// Whether who runs the test is root in earnest.
pub fn is_whole_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// As [`as_root`], but whoever is root is it in earnest: an engine that shall run containers
/// needs more than a namespace's root may do.
pub fn as_whole_root() -> Command {
    match is_whole_root() {
        true => {
            let mut command = tool("unshare");
            command.arg("--mount").args(OWN_PLACES);
            command
        }
        false => as_root(),
    }
}

fn has_user_namespaces() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let tried = tool("unshare").args(NAMESPACES).arg("true").output();
        tried.is_ok_and(|output| output.status.success())
    })
}

//! Device nodes and links in the container's `/dev`.

use std::{io, os::fd::OwnedFd, os::unix::fs::symlink, path::Path};

use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use rustix::{
    fs::{Gid, Uid},
    pty::OpenptFlags,
};

use super::{RunError, mounts::bind, spec::DeviceNode};

/// Name, major and minor number of the character devices that every container has (OCI runtime
/// specification, "Default Devices").
const NODES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Links in `/dev`, and where they point.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];
/// Group `tty`, as in every distribution.
const TTY_GROUP: u32 = 5;

/// Fills the fresh `/dev`; more devices are put where the request wants them.
pub fn populate(more: &[DeviceNode]) -> Result<(), RunError> {
    let old = umask(Mode::empty());
    let made = make_nodes().and_then(|()| more.iter().try_for_each(make_node));
    umask(old);
    made?;
    for (name, target) in LINKS {
        let path = format!("/dev/{name}");
        symlink(target, &path).map_err(RunError::io(format!("make {path}")))?;
    }
    Ok(())
}

fn make_nodes() -> Result<(), RunError> {
    NODES.iter().try_for_each(|&(name, major, minor)| {
        let path = format!("/dev/{name}");
        let mode = Mode::from_bits_truncate(0o666);
        mknod(path.as_str(), SFlag::S_IFCHR, mode, makedev(major, minor))
            .map_err(io::Error::from)
            .map_err(RunError::io(format!("make {path}")))
    })
}

/// A node that is there already is one of the usual ones, or the image's own and in the way.
fn make_node(device: &DeviceNode) -> Result<(), RunError> {
    let path = device.path.as_str();
    if LINKS.iter().any(|(name, _)| path == format!("/dev/{name}"))
        || NODES
            .iter()
            .any(|(name, ..)| path == format!("/dev/{name}"))
    {
        return Ok(());
    }
    let kind = if device.block {
        SFlag::S_IFBLK
    } else {
        SFlag::S_IFCHR
    };
    let number = makedev(device.major.into(), device.minor.into());
    let make = || -> io::Result<()> {
        if let Some(parent) = Path::new(path).parent() {
            std::fs::create_dir_all(parent)?;
        }
        Ok(mknod(
            path,
            kind,
            Mode::from_bits_truncate(device.mode),
            number,
        )?)
    };
    make().map_err(RunError::io(format!("make {path}")))
}

/// The container's own null device, open for reading; `None` when its programs put something else
/// there.
pub fn open_null() -> Option<OwnedFd> {
    use rustix::fs::{FileType, Mode, OFlags, fstat, makedev, open};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let null = open("/dev/null", flags, Mode::empty()).ok()?;
    let stat = fstat(&null).ok()?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(1, 3);
    is_null.then_some(null)
}

/// A terminal of the container's own `devpts`.
#[derive(Debug)]
pub struct Terminal {
    /// The side that the agent reads and writes.
    pub master: OwnedFd,
    /// The side of the container's process; also `/dev/console`.
    pub slave: OwnedFd,
}

/// Opens a terminal for user `uid` and shows it as `/dev/console` if it is the `console`.
pub fn open_terminal(uid: u32, console: bool) -> Result<Terminal, RunError> {
    let open = || -> io::Result<Terminal> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::fs::open(
            "/dev/pts/ptmx",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        rustix::fs::fchown(
            &slave,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(TTY_GROUP)),
        )?;
        if console {
            std::fs::File::create("/dev/console")?;
            bind(name.to_string_lossy().as_ref(), "/dev/console").map_err(io::Error::from)?;
        }
        Ok(Terminal { master, slave })
    };
    open().map_err(RunError::io("open a terminal"))
}

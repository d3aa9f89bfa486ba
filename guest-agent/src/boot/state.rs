//! Where images live: the state disk, or memory when there is none.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::mount::MsFlags;
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};

use super::disks;

/// The serial number that the host gives the state disk.
const SERIAL: &str = "vdkr-state";

/// How long the kernel may take to see a disk that the host has attached.
const DISK_TIME: Duration = Duration::from_secs(20);

/// Where the host wants the state to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// On a disk that is there or about to come.
    Disk,
    /// In memory.
    Memory,
    /// On a disk when there is one: the host is too old to say.
    Either,
}

impl Wish {
    /// The wish in a host's greeting.
    pub fn of(word: &str) -> Self {
        match word {
            "disk" => Self::Disk,
            "tmpfs" => Self::Memory,
            _ => Self::Either,
        }
    }
}

/// Why the state disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is not there.
    #[error("{0}; the emulator's log on the host may tell why")]
    Missing(io::Error),
    /// It is there and is not what it should be.
    #[error(
        "state disk {disk} cannot be mounted as ext4: {source}; check the disk image with \
         e2fsck on the host, or remove it to start afresh"
    )]
    Mount {
        /// The device.
        disk: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The state disk, when the machine has it already. What is on it is not known before a host has come.
pub fn find() -> Option<PathBuf> {
    disks::find(SERIAL)
}

/// Mounts the state disk on `target`, or a tmpfs when the machine has no such disk. Gives the word
/// for the greeting. Blocks the thread. `known` is what [`find`] gave.
///
/// A disk that is there and cannot be mounted is an error: images put into memory instead would be
/// lost without a word.
pub fn mount(
    target: &Path,
    wish: Wish,
    known: Option<PathBuf>,
) -> Result<&'static str, StateError> {
    let disk = match (wish, known) {
        (Wish::Memory, _) => None,
        (Wish::Disk | Wish::Either, Some(disk)) => Some(disk),
        (Wish::Disk, None) => {
            Some(disks::wait_for(SERIAL, DISK_TIME).map_err(StateError::Missing)?)
        }
        (Wish::Either, None) => find(),
    };
    let error = |source: io::Error| StateError::Mount {
        disk: disk
            .as_deref()
            .unwrap_or(Path::new("tmpfs"))
            .display()
            .to_string(),
        source,
    };
    fs::create_dir_all(target).map_err(error)?;
    if let Some(disk) = &disk {
        forget(disk).map_err(error)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let (source, kind, data, word) = match &disk {
        // The kernel replays the journal by itself, and gives back to the host what becomes free.
        Some(disk) => (disk.as_path(), "ext4", "errors=remount-ro,discard", "disk"),
        None => (Path::new("tmpfs"), "tmpfs", "mode=700,size=75%", "tmpfs"),
    };
    nix::mount::mount(Some(source), target, Some(kind), flags, Some(data))
        .map_err(|errno| error(errno.into()))?;
    Ok(word)
}

/// `BLKFLSBUF` of `linux/fs.h`.
const FORGET: Opcode = opcode::none(0x12, 97);

/// Makes the kernel forget what it has read of a disk: the machine may have been saved with a blank
/// one in its place.
#[allow(unsafe_code, reason = "an ioctl without a safe wrapper")]
fn forget(disk: &Path) -> io::Result<()> {
    let disk = fs::File::open(disk)?;
    // SAFETY: it takes no argument and touches no memory of ours.
    unsafe { ioctl(&disk, NoArg::<FORGET>::new()) }?;
    Ok(())
}

/// `FIFREEZE` and `FITHAW` of `ioctl_fs(2)`, which take a number that means nothing.
const FREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
const THAW: Opcode = opcode::read_write::<i32>(b'X', 120);

/// Writes everything down and the journal back, and holds up later writes: the disk is then as
/// after an unmount. `false` when that cannot be done.
pub fn freeze(target: &Path) -> bool {
    hold::<FREEZE>(target).is_ok()
}

/// Lets writes go on. Does nothing to a file system that is not frozen.
pub fn thaw(target: &Path) {
    let _ = hold::<THAW>(target);
}

#[allow(unsafe_code, reason = "ioctls without a safe wrapper")]
fn hold<const REQUEST: Opcode>(target: &Path) -> io::Result<()> {
    let dir = fs::File::open(target)?;
    // SAFETY: the kernel looks at the number at most.
    unsafe { ioctl(&dir, Setter::<REQUEST, _>::new(0_i32)) }?;
    Ok(())
}

/// Makes the disk's content whole and lets go of it. What still holds it is cut off.
pub fn unmount(target: &Path) {
    thaw(target);
    unmount_below(target);
    nix::unistd::sync();
    for _ in 0..50 {
        match nix::mount::umount(target) {
            Err(nix::errno::Errno::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let remounted = mount_again(target, flags);
    if remounted.is_err() {
        nix::unistd::sync();
    }
}

/// Layers that the host keeps are mounted within the state.
fn unmount_below(target: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The fifth word is where it is mounted; what was mounted last goes first.
    for line in mounts.lines().rev() {
        let place = line.split(' ').nth(4).map(Path::new);
        if let Some(place) = place.filter(|place| *place != target && place.starts_with(target)) {
            let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn mount_again(target: &Path, flags: MsFlags) -> nix::Result<()> {
    nix::mount::mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
}

//! What a container has changed: its overlay's upper directory, alone.
//!
//! The overlay itself is not mounted, which it may be once only, so this works whether the container
//! runs or not. The upper directory becomes the root of the process: no link leads out of it.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{chdir, chroot},
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, open, openat2},
    io::Errno,
};
use vdkr_transfer::tree::{Mark, Step, TreeError, pack_changes, walk_changes};

use super::{RunError, rootfs, sandbox::step, spec::Root};

/// In which form changes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As a layer.
    Layer,
    /// As a list: for each path `A`, `C` or `D`, its name, and a zero byte.
    List,
}

/// Files that are mounted over what the agent makes for that.
const BOUND: [&[u8]; 3] = [b"etc/hostname", b"etc/hosts", b"etc/resolv.conf"];
/// Directories of the kernel's, in which nothing can be changed.
const KERNELS: [&[u8]; 3] = [b"dev", b"proc", b"sys"];

/// Writes what is in the upper directory of `root`.
pub fn write(root: &Root, form: Form, out: &mut impl Write) -> Result<(), RunError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace"))?;
    rootfs::make_private()?;
    chdir(&root.base).map_err(step("enter the layers"))?;
    let lower = match form {
        Form::Layer => None,
        Form::List => Some(mount_lower(root)?),
    };
    chroot(&root.upper).map_err(step("enter the container's changes"))?;
    chdir("/").map_err(step("enter the container's changes"))?;
    let top = Path::new("/");
    let written = match lower {
        None => pack_changes(top, &is_agents, out),
        Some(lower) => walk_changes(top, &is_agents, &mut |step| {
            let letter = match step.mark {
                Mark::Whiteout => b"D",
                _ if lies_in(&lower, step.name).map_err(TreeError::Stream)? => b"C",
                _ => b"A",
            };
            Ok(out.write_all(&[letter, step.name, b"\0"].concat())?)
        })
        .and_then(|()| Ok(out.flush()?)),
    };
    written.map_err(|error| RunError::Setup(error.to_string()))
}

/// Whether the agent has made it, to mount something there.
fn is_agents(step: &Step<'_>) -> bool {
    (KERNELS.contains(&step.name) && step.meta.is_dir())
        || (BOUND.contains(&step.name) && step.meta.is_file() && step.meta.len() == 0)
}

/// The image without the container's changes.
fn mount_lower(root: &Root) -> Result<OwnedFd, RunError> {
    let mut options = b"lowerdir=".to_vec();
    // Without an upper directory the kernel wants two lower ones.
    let empty = root.merged.with_file_name("empty");
    let alone = (root.lower.len() == 1).then_some(&empty);
    rootfs::push_layers(&mut options, root.lower.iter().chain(alone));
    let kind = Some("overlay");
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    mount(kind, &root.merged, kind, flags, Some(&*options))
        .map_err(step("mount the image's layers"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(&root.merged, flags, Mode::empty())
        .map_err(io::Error::from)
        .map_err(RunError::io("open the image's layers"))
}

fn lies_in(lower: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(lower, name, flags, Mode::empty(), how) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

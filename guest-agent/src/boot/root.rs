//! Leaving the initramfs.
//!
//! The kernel's first root cannot be the old root of a `pivot_root`, so containers could not be
//! entered from it. A tmpfs takes its place; the agent's own program stays where it is and is
//! reached by `/proc/self/exe`.

use std::{fs, io, path::Path};

use nix::{
    mount::{MsFlags, mount},
    unistd::{chdir, chroot},
};

use super::modules;

const NEW_ROOT: &str = "/newroot";
/// Mounts that come along.
const MOVED: [&str; 3] = ["proc", "sys", "dev"];

/// Makes a tmpfs the root and moves `/proc`, `/sys` and `/dev` into it. The modules that are loaded
/// by now are removed from memory, the others come along.
pub fn leave_initramfs() -> io::Result<()> {
    fs::create_dir_all(NEW_ROOT)?;
    mount(
        Some("tmpfs"),
        NEW_ROOT,
        Some("tmpfs"),
        MsFlags::MS_NODEV,
        Some("mode=755"),
    )?;
    let later = format!("{NEW_ROOT}{}", modules::DIR);
    if let Err(error) = modules::keep_later(Path::new(modules::DIR), Path::new(&later)) {
        eprintln!("vdkr-agent: modules for later: {error}");
    }
    let _ = fs::remove_dir_all(modules::DIR);
    for name in MOVED {
        let (from, to) = (format!("/{name}"), format!("{NEW_ROOT}/{name}"));
        fs::create_dir(&to)?;
        move_mount(&from, &to)?;
    }
    chdir(NEW_ROOT)?;
    move_mount(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

fn move_mount(from: &str, to: &str) -> nix::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
}

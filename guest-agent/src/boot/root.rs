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

/// What may have been baked into the image: registry, CA and login.
const BAKED: [&str; 3] = ["etc", "root", "home"];

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
    for name in BAKED {
        let (from, to) = (format!("/{name}"), format!("{NEW_ROOT}/{name}"));
        if let Err(error) = carry(Path::new(&from), Path::new(&to)) {
            eprintln!("vdkr-agent: what the image has in {from}: {error}");
        }
    }
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

/// Copies the directories and regular files of a directory, with their modes.
fn carry(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in entries {
        let entry = entry?;
        let (path, place) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            carry(&path, &place)?;
        } else if kind.is_file() {
            // The mode comes along.
            fs::copy(&path, &place)?;
        }
    }
    Ok(())
}

fn move_mount(from: &str, to: &str) -> nix::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn files_come_along_with_their_modes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        carry(&from, &to).unwrap();
        assert!(!to.exists(), "there was nothing");
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/secret"), "s").unwrap();
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(from.join("a/b/secret"), private).unwrap();
        symlink("/etc/shadow", from.join("link")).unwrap();
        carry(&from, &to).unwrap();
        let copied = fs::metadata(to.join("a/b/secret")).unwrap();
        assert_eq!(copied.permissions().mode() & 0o777, 0o600);
        assert!(!to.join("link").exists());
    }
}

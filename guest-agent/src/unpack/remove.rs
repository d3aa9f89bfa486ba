//! Removal of a tree without following links and without recursion: a layer may be as deep as its
//! maker liked, and may have been made by someone hostile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};

/// Removes `name` in `parent`, whatever it is; absent is fine.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    remove_tree_while(parent, name, || true).map(|_| ())
}

/// As [`remove_tree`], as long as `go_on` says so (asked at each directory); whether it finished.
pub fn remove_tree_while(
    parent: BorrowedFd<'_>,
    name: &[u8],
    go_on: impl Fn() -> bool,
) -> Result<bool> {
    match unlink(parent, name) {
        Err(Errno::ISDIR) => {}
        other => return other.map(|()| true),
    }
    let mut directory = open(parent, name)?;
    let mut above: Vec<(Vec<u8>, Vec<Vec<u8>>)> = Vec::new();
    let mut own_name = name.to_vec();
    let mut children = empty(&directory)?;
    loop {
        if !go_on() {
            return Ok(false);
        }
        if let Some(child) = children.pop() {
            let below = open(directory.as_fd(), &child)?;
            above.push((
                std::mem::replace(&mut own_name, child),
                std::mem::take(&mut children),
            ));
            children = empty(&below)?;
            directory = below;
        } else if let Some((name, siblings)) = above.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let up = fs::openat(&directory, "..", flags, Mode::empty())?;
            fs::unlinkat(&up, own_name.as_slice(), AtFlags::REMOVEDIR)?;
            directory = up;
            own_name = name;
            children = siblings;
        } else {
            fs::unlinkat(parent, own_name.as_slice(), AtFlags::REMOVEDIR)?;
            return Ok(true);
        }
    }
}

/// Unlinks everything in `directory` but its directories, which are returned.
fn empty(directory: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            entries.push((name.to_vec(), entry.file_type()));
        }
    }
    let mut directories = Vec::new();
    for (name, kind) in entries {
        if kind == FileType::Directory {
            directories.push(name);
            continue;
        }
        match unlink(directory.as_fd(), &name) {
            Err(Errno::ISDIR) => directories.push(name),
            other => other?,
        }
    }
    Ok(directories)
}

fn unlink(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn open(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || fs::openat(parent, name, flags, Mode::empty());
    let directory = match open() {
        // An ordinary user's own directory without the right to list it.
        Err(Errno::ACCESS) => {
            fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            return open();
        }
        other => other?,
    };
    let mode = Mode::from_raw_mode(fs::fstat(&directory)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // Best effort: the privileged do not need it.
        let _ = fs::fchmod(&directory, mode | Mode::RWXU);
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::root::Root;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_are_not_followed_and_depth_does_not_matter() {
        let place = tempfile::tempdir().unwrap();
        let keep = place.path().join("keep");
        std::fs::create_dir(&keep).unwrap();
        std::fs::write(keep.join("file"), "stays").unwrap();
        let tree = place.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        symlink(&keep, tree.join("link")).unwrap();
        std::fs::write(tree.join("file"), "").unwrap();
        // Deeper than there are file descriptors.
        let mut at = Root::open(&tree)
            .unwrap()
            .fd()
            .try_clone_to_owned()
            .unwrap();
        for _ in 0..1100 {
            fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = fs::openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(Root::open(place.path()).unwrap().fd(), b"tree").unwrap();
        assert!(!tree.exists());
        assert_eq!(std::fs::read_to_string(keep.join("file")).unwrap(), "stays");
    }

    #[test]
    fn closed_directories_are_opened() {
        let place = tempfile::tempdir().unwrap();
        let closed = place.path().join("tree/closed");
        for mode in [0o000, 0o400, 0o500] {
            std::fs::create_dir_all(closed.join("below")).unwrap();
            std::fs::write(closed.join("file"), "").unwrap();
            std::fs::set_permissions(&closed, PermissionsExt::from_mode(mode)).unwrap();
            remove_tree(Root::open(place.path()).unwrap().fd(), b"tree").unwrap();
            assert!(!place.path().join("tree").exists());
        }
        remove_tree(Root::open(place.path()).unwrap().fd(), b"absent").unwrap();
    }
}

//! Files beneath a directory, whatever somebody put into it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

/// Opens the directory itself, to which a symbolic link may lead.
pub(crate) fn root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a regular file. A symbolic link on the way, or at its end, is an error
/// (see [`is_link_error`]), as is anything else that is no regular file.
pub(crate) fn file(root: &OwnedFd, path: &str) -> io::Result<File> {
    // Without NONBLOCK, opening a pipe would wait for its other end.
    let file = File::from(open(root.as_fd(), path, OFlags::NONBLOCK)?);
    let kind = FileType::from_raw_mode(fstat(&file)?.st_mode);
    if kind == FileType::RegularFile {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

/// Opens a directory.
pub(crate) fn directory(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    Ok(open(root.as_fd(), path, OFlags::DIRECTORY)?)
}

/// Whether a symbolic link stood in the way.
pub(crate) fn is_link_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let read = OFlags::RDONLY | OFlags::CLOEXEC | flags;
    loop {
        match openat2(root, path, read, Mode::empty(), resolve) {
            // A rename elsewhere in the tree raced with the look-up.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Linux before 5.6, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return step_by_step(root, path, read),
            other => return other,
        }
    }
}

/// The same without `openat2`: one component after the other, none of them a link or `..`.
fn step_by_step(root: BorrowedFd<'_>, path: &str, last: OFlags) -> Result<OwnedFd, Errno> {
    let mut components = path.split('/').peekable();
    let mut here: Option<OwnedFd> = None;
    while let Some(component) = components.next() {
        if matches!(component, "" | "." | "..") {
            return Err(Errno::XDEV);
        }
        let flags = match components.peek() {
            Some(_) => OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY,
            None => last,
        };
        let from = here.as_ref().map_or(root, AsFd::as_fd);
        let opened = openat(from, component, flags | OFlags::NOFOLLOW, Mode::empty());
        // With DIRECTORY, a link is "not a directory"; say what it is.
        here = Some(opened.map_err(|error| match error {
            Errno::NOTDIR if is_link(from, component) => Errno::LOOP,
            other => other,
        })?);
    }
    here.ok_or(Errno::XDEV)
}

fn is_link(at: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statat(at, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Both ways to open must agree.
    fn both(root: &OwnedFd, path: &str) -> [Result<(), Errno>; 2] {
        let read = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        [
            open(root.as_fd(), path, OFlags::NONBLOCK).map(drop),
            step_by_step(root.as_fd(), path, read).map(drop),
        ]
    }

    #[test]
    fn links_and_escapes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        std::fs::write(at("real/file"), "x").unwrap();
        symlink("real", at("link")).unwrap();
        symlink("file", at("real/link")).unwrap();
        symlink("/etc/passwd", at("real/out")).unwrap();
        let root = root(dir.path()).unwrap();
        assert_eq!(both(&root, "real/file"), [Ok(()), Ok(())]);
        for path in ["link/file", "real/link", "real/out"] {
            assert_eq!(both(&root, path), [Err(Errno::LOOP); 2], "{path}");
        }
        for path in ["../x", "real/../../x", "/etc/passwd"] {
            assert_eq!(both(&root, path), [Err(Errno::XDEV); 2], "{path}");
        }
        assert_eq!(both(&root, "real/none"), [Err(Errno::NOENT); 2]);
    }

    #[test]
    fn only_regular_files_are_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let pipe = dir.path().join("pipe");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, mode, 0).unwrap();
        let root = root(dir.path()).unwrap();
        assert!(file(&root, "d").is_err());
        assert!(file(&root, "pipe").is_err());
        assert!(directory(&root, "d").is_ok());
        assert!(directory(&root, "pipe").is_err());
    }

    #[test]
    fn the_root_itself_may_be_reached_by_a_link() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        assert!(root(&dir.path().join("link")).is_ok());
    }
}

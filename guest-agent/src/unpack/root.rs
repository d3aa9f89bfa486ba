//! The directory that a layer is unpacked into. Every path is resolved by the kernel with
//! `openat2(RESOLVE_IN_ROOT)`: symbolic links within the layer work as they will in the container,
//! and none leads out, whoever changes the tree meanwhile.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

use super::overlay::{Marks, is_whiteout};

/// Symbolic links followed in one path before it is called a loop, as in the kernel.
const MAX_LINKS: u32 = 40;
/// Bytes of a resolved path.
const MAX_PATH: usize = 4095;
/// How often a resolution that raced with a rename is repeated.
const RETRIES: u32 = 64;

/// How directories are opened that serve as a place for `*at` calls.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Mode of a directory that a layer uses without naming it.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);

/// An open directory that acts as `/` for the paths given to it.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    implied: AtomicU64,
}

impl Root {
    /// Opens `path`, which must be a directory and no symbolic link.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self {
            fd: fs::open(path, flags, Mode::empty())?,
            implied: AtomicU64::new(0),
        })
    }

    /// How many directories were made here without being named.
    pub fn implied(&self) -> u64 {
        self.implied.load(Ordering::Relaxed)
    }

    /// The directory itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens the directory at `path` for use with `*at` calls, following links within the root.
    pub fn directory(&self, path: &[u8]) -> Result<OwnedFd> {
        self.resolve(path, DIRECTORY, ResolveFlags::IN_ROOT)
    }

    /// As [`Root::directory`], making what is missing. Where a whiteout stands in the way it gives
    /// place to an opaque directory, which hides the same and can hold something new.
    pub fn directory_or_make(&self, path: &[u8], marks: Marks) -> Result<OwnedFd> {
        match self.directory(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            other => return other,
        }
        // The kernel cannot make directories while it resolves, so the links are followed here,
        // on names that are then opened without following any.
        let mut todo: VecDeque<Vec<u8>> = components(path).collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut at = self.exactly(&real)?;
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                real.pop();
                at = self.exactly(&real)?;
                continue;
            }
            match fs::statat(&at, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {
                    self.make_implied(&at, &name)?;
                }
                Err(error) => return Err(error),
                Ok(stat) if is_whiteout(&stat) => {
                    fs::unlinkat(&at, name.as_slice(), AtFlags::empty())?;
                    marks.set_opaque(self.make_implied(&at, &name)?)?;
                }
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {}
                    FileType::Symlink => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Errno::LOOP);
                        }
                        let target = fs::readlinkat(&at, name.as_slice(), Vec::new())?;
                        if target.as_bytes().starts_with(b"/") {
                            real.clear();
                            at = self.exactly(&real)?;
                        }
                        for part in components(target.as_bytes()).rev() {
                            todo.push_front(part);
                        }
                        continue;
                    }
                    _ => return Err(Errno::NOTDIR),
                },
            }
            at = fs::openat(
                &at,
                name.as_slice(),
                DIRECTORY | OFlags::NOFOLLOW,
                Mode::empty(),
            )?;
            real.push(name);
            if real.iter().map(|part| part.len() + 1).sum::<usize>() > MAX_PATH {
                return Err(Errno::NAMETOOLONG);
            }
        }
        // Once more by the kernel alone: `at` may have been moved away meanwhile.
        self.exactly(&real)
    }

    /// Opens a directory by a path that must have no links in it.
    fn exactly(&self, real: &[Vec<u8>]) -> Result<OwnedFd> {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        self.resolve(&real.join(&b'/'), DIRECTORY, how)
    }

    fn make_implied(&self, parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
        fs::mkdirat(parent, name, IMPLIED_MODE)?;
        self.implied.fetch_add(1, Ordering::Relaxed);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = fs::openat(parent, name, flags, Mode::empty())?;
        // The process's umask may have taken bits away.
        fs::fchmod(&made, IMPLIED_MODE)?;
        Ok(made)
    }

    fn resolve(&self, path: &[u8], flags: OFlags, how: ResolveFlags) -> Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let how = how | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let mut tries = 0;
        loop {
            match fs::openat2(&self.fd, path, flags, Mode::empty(), how) {
                // A rename somewhere made `..` unsure for a moment.
                Err(Errno::AGAIN) if tries < RETRIES => tries += 1,
                other => return other,
            }
        }
    }
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .map(<[u8]>::to_vec)
}

//! The one room through which every file operation of the registry passes.
//!
//! Paths are relative to the storage root, with `/` between their components, and are resolved beneath
//! it: a symbolic link inside the storage is never followed, whatever it points to. Nothing here knows
//! what a blob or a tag is; [`crate::storage`] does.
//!
//! A [`FaultPlan`] given to [`Fs::open_with`] sees each operation before it happens. Tests use it to
//! record a request, to make its n-th operation fail, and to stop the world in the middle of one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{self as sys, AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

mod fault;
mod file;
mod stat;
mod watched;

pub use fault::{Fault, FaultPlan, Op};
pub use file::File;
pub use stat::{Kind, Stamp, Stat};
pub(crate) use watched::{Changes, Watched};

/// An operation on the storage that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {action} {}: {errno}", path.display())]
pub struct FsError {
    /// What was tried, as a verb: `create`, `write to`, `sync`.
    pub action: &'static str,
    /// The file or directory, with the storage root in front.
    pub path: PathBuf,
    /// What the operating system answered.
    pub errno: Errno,
}

impl FsError {
    /// Nothing is there under this name. A symbolic link on the way is something else: what it leads to
    /// is not ours to serve, and not ours to miss.
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno, Errno::NOENT | Errno::NOTDIR)
    }

    /// The disk, or the quota on it, is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self.errno, Errno::NOSPC | Errno::DQUOT)
    }

    /// The file system is there to be read only.
    pub fn is_read_only(&self) -> bool {
        self.errno == Errno::ROFS
    }

    /// Somebody else holds a lock.
    pub fn is_locked(&self) -> bool {
        self.errno == Errno::WOULDBLOCK
    }

    /// This process, or the system, has as many files open as it may have.
    pub fn is_too_many_files(&self) -> bool {
        matches!(self.errno, Errno::MFILE | Errno::NFILE)
    }
}

/// Shorthand of this room.
pub type Result<T> = std::result::Result<T, FsError>;

/// Room on the file system of the storage, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free for this user.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// The storage root. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: OwnedFd,
    base: PathBuf,
    /// What new directories and files are made with, before the umask.
    modes: (Mode, Mode),
    openat2: bool,
    plan: Option<Arc<FaultPlan>>,
}

/// The longest pause between two looks at a lock that somebody else holds.
const PAUSE: Duration = Duration::from_millis(50);

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Makes the directory of a storage, for its user alone, unless it is there; those above it as usual.
pub fn make_root(base: &Path) -> std::io::Result<()> {
    if let Some(above) = base.parent() {
        std::fs::create_dir_all(above)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(base) {
        Err(_) if base.is_dir() => Ok(()),
        made => made,
    }
}

/// The modes of directories and of files that are made in a storage whose root has this one, before the
/// umask: whoever may use the root may use what is in it, and nobody else.
pub fn modes(root: u32) -> (u32, u32) {
    let directory = (root & 0o777) | 0o700;
    (directory, directory & 0o666)
}

impl Fs {
    /// Opens the directory `base`, which may itself be reached through symbolic links.
    pub fn open(base: &Path) -> Result<Self> {
        Self::open_with(base, None)
    }

    /// [`Fs::open`] with a plan that sees every operation.
    pub fn open_with(base: &Path, plan: Option<Arc<FaultPlan>>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fail = |errno| FsError {
            action: "open",
            path: base.to_owned(),
            errno,
        };
        let root = retry(|| sys::open(base, flags, Mode::empty())).map_err(fail)?;
        let stat = retry(|| sys::fstat(&root)).map_err(fail)?;
        // Old kernels and some sandboxes have no openat2: the walk in `resolve` does the same in steps.
        let openat2 = sys::openat2(&root, ".", flags, Mode::empty(), RESOLVE).is_ok();
        let base = base.to_owned();
        let (directories, files) = modes(stat.st_mode);
        Ok(Self(Arc::new(Inner {
            root,
            base,
            modes: (Mode::from_raw_mode(directories), Mode::from_raw_mode(files)),
            openat2,
            plan,
        })))
    }

    /// The directory given to [`Fs::open`].
    pub fn base(&self) -> &Path {
        &self.0.base
    }

    /// Whether a plan watches the operations.
    pub(crate) fn is_watched(&self) -> bool {
        self.0.plan.is_some()
    }

    /// The error of an operation that ended without an answer.
    pub(crate) fn interrupted(&self) -> FsError {
        self.error("finish an operation in", "", Errno::INTR)
    }

    /// Makes one directory, in a parent that exists. `false`: it was there already.
    pub fn mkdir(&self, path: &str) -> Result<bool> {
        let done = self
            .step(|| Op::Mkdir {
                path: path.to_owned(),
            })
            .and_then(|()| {
                let (parent, name) = self.parent(path)?;
                retry(|| sys::mkdirat(&parent, name, self.0.modes.0))
            });
        match done {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(self.error("create the directory", path, errno)),
        }
    }

    /// Makes a file that does not exist yet, for writing.
    pub fn create(&self, path: &str) -> Result<File> {
        let id = self.0.plan.as_ref().map_or(0, |plan| plan.opening());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        self.step(|| Op::Create {
            path: path.to_owned(),
            file: id,
        })
        .and_then(|()| self.resolve(path, flags, self.0.modes.1))
        .map(|fd| File {
            fs: self.clone(),
            fd,
            path: path.to_owned(),
            id,
        })
        .map_err(|errno| self.error("create", path, errno))
    }

    /// Opens a regular file for reading.
    pub fn open_file(&self, path: &str) -> Result<(File, Stat)> {
        self.open_existing(path, OFlags::RDONLY)
    }

    /// Opens a regular file that exists, for reading and for writing at any offset.
    pub fn reopen(&self, path: &str) -> Result<(File, Stat)> {
        self.open_existing(path, OFlags::RDWR)
    }

    fn open_existing(&self, path: &str, access: OFlags) -> Result<(File, Stat)> {
        let id = self.0.plan.as_ref().map_or(0, |plan| plan.opening());
        // NONBLOCK: a pipe that someone put here must not hold the thread; it means nothing to a file.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.step(|| Op::Open {
            path: path.to_owned(),
            file: id,
        })
        .and_then(|()| self.resolve(path, flags, Mode::empty()))
        .and_then(|fd| {
            let stat = Stat::from(retry(|| sys::fstat(&fd))?);
            match stat.kind {
                Kind::File => Ok((
                    File {
                        fs: self.clone(),
                        fd,
                        path: path.to_owned(),
                        id,
                    },
                    stat,
                )),
                _ => Err(Errno::NOENT),
            }
        })
        .map_err(|errno| self.error("open", path, errno))
    }

    /// Reads a whole regular file of at most `cap` bytes; a longer one is cut there.
    pub fn read(&self, path: &str, cap: usize) -> Result<(Vec<u8>, Stat)> {
        let (file, stat) = self.open_file(path)?;
        let wanted = usize::try_from(stat.size).unwrap_or(usize::MAX).min(cap);
        let mut bytes = vec![0; wanted];
        let mut filled = 0;
        while filled < wanted {
            let n = file.read_at(&mut bytes[filled..], filled as u64)?;
            if n == 0 {
                break;
            }
            filled += n;
        }
        bytes.truncate(filled);
        Ok((bytes, stat))
    }

    /// Looks at a file or directory; `None` when nothing is there.
    pub fn stat(&self, path: &str) -> Result<Option<Stat>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        self.stat_by(path, || {
            retry(|| sys::fstat(self.resolve(path, flags, Mode::empty())?))
        })
    }

    /// [`Fs::stat`] in one system call, for comparing with a [`Stamp`] taken before: only the last
    /// component is checked for being a symbolic link.
    pub fn stat_known(&self, path: &str) -> Result<Option<Stat>> {
        self.stat_by(path, || {
            retry(|| sys::statat(&self.0.root, path, AtFlags::SYMLINK_NOFOLLOW))
        })
    }

    fn stat_by(
        &self,
        path: &str,
        look: impl Fn() -> rustix::io::Result<sys::Stat>,
    ) -> Result<Option<Stat>> {
        let found = self
            .step(|| Op::Stat {
                path: path.to_owned(),
            })
            .and_then(|()| look());
        match found.map_err(|errno| self.error("look at", path, errno)) {
            Ok(stat) => Ok(Some(stat.into())),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls `visit` with each entry of a directory, in no order. One whose name is not UTF-8 cannot be
    /// asked for by anybody: it comes as [`Kind::Other`], with as much of its name as can be read.
    pub fn list(&self, path: &str, mut visit: impl FnMut(&str, Kind)) -> Result<()> {
        let fail = |errno| self.error("list", path, errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = self
            .step(|| Op::List {
                path: path.to_owned(),
            })
            .and_then(|()| self.resolve(path, flags, Mode::empty()))
            .map_err(fail)?;
        let mut entries = sys::Dir::new(fd).map_err(fail)?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(fail)?;
            let Ok(name) = entry.file_name().to_str() else {
                visit(&entry.file_name().to_string_lossy(), Kind::Other);
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Not every file system says it in the listing.
                FileType::Unknown => {
                    let Ok(fd) = entries.fd() else { continue };
                    match sys::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => FileType::from_raw_mode(stat.st_mode).into(),
                        Err(_) => continue,
                    }
                }
                known => known.into(),
            };
            visit(name, kind);
        }
        Ok(())
    }

    /// Moves a file or directory over whatever file has the new name.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.step(|| Op::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        })
        .and_then(|()| {
            let (from_parent, from_name) = self.parent(from)?;
            let (to_parent, to_name) = self.parent(to)?;
            retry(|| sys::renameat(&from_parent, from_name, &to_parent, to_name))
        })
        .map_err(|errno| self.error("rename a file to", to, errno))
    }

    /// Says that a file or directory was used now: its modification time becomes the present.
    pub fn touch(&self, path: &str) -> Result<()> {
        let now = sys::Timespec {
            tv_sec: 0,
            tv_nsec: sys::UTIME_NOW,
        };
        let times = sys::Timestamps {
            last_access: sys::Timespec {
                tv_sec: 0,
                tv_nsec: sys::UTIME_OMIT,
            },
            last_modification: now,
        };
        self.step(|| Op::Touch {
            path: path.to_owned(),
        })
        .and_then(|()| {
            let (parent, name) = self.parent(path)?;
            retry(|| sys::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW))
        })
        .map_err(|errno| self.error("touch", path, errno))
    }

    /// Makes the names in a directory durable.
    pub fn sync_dir(&self, path: &str) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        self.step(|| Op::SyncDir {
            path: path.to_owned(),
        })
        .and_then(|()| {
            let fd = self.resolve(path, flags, Mode::empty())?;
            retry(|| sys::fsync(&fd))
        })
        .map_err(|errno| self.error("sync the directory", path, errno))
    }

    /// Removes a file. `false`: there was none.
    pub fn remove_file(&self, path: &str) -> Result<bool> {
        self.remove(path, AtFlags::empty(), || Op::RemoveFile {
            path: path.to_owned(),
        })
    }

    /// Removes an empty directory. `false`: there was none.
    pub fn remove_dir(&self, path: &str) -> Result<bool> {
        self.remove(path, AtFlags::REMOVEDIR, || Op::RemoveDir {
            path: path.to_owned(),
        })
    }

    fn remove(&self, path: &str, flags: AtFlags, op: impl Fn() -> Op) -> Result<bool> {
        let done = self.step(op).and_then(|()| {
            let (parent, name) = self.parent(path)?;
            retry(|| sys::unlinkat(&parent, name, flags))
        });
        match done.map_err(|errno| self.error("remove", path, errno)) {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Locks a directory against other openings of it, in this process or another, until the result
    /// is dropped. `None`: another holds it, or this file system cannot lock.
    pub fn try_lock_dir(&self, path: &str, exclusive: bool) -> Result<Option<OwnedFd>> {
        match self.lock_dir(path, exclusive, Duration::ZERO) {
            Err(error) if error.is_locked() => Ok(None),
            done => done,
        }
    }

    /// [`Fs::try_lock_dir`], and waits for others to let go of it. Whoever may read a directory may lock
    /// it, so this ends some day: with an error that [is about that](FsError::is_locked). `None`: this
    /// file system cannot lock.
    pub fn lock_dir(
        &self,
        path: &str,
        exclusive: bool,
        patience: Duration,
    ) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = self
            .step(|| Op::Lock {
                path: path.to_owned(),
            })
            .and_then(|()| self.resolve(path, flags, Mode::empty()))
            .map_err(|errno| self.error("lock", path, errno))?;
        let how = match exclusive {
            true => FlockOperation::NonBlockingLockExclusive,
            false => FlockOperation::NonBlockingLockShared,
        };
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match retry(|| sys::flock(&fd, how)) {
                Ok(()) => return Ok(Some(fd)),
                Err(Errno::WOULDBLOCK) => {}
                Err(_) => return Ok(None),
            }
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(self.error("lock", path, Errno::WOULDBLOCK));
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// Room left on the file system.
    pub fn space(&self) -> Result<Space> {
        let stat = retry(|| sys::fstatvfs(&self.0.root))
            .map_err(|errno| self.error("look at", "", errno))?;
        Ok(Space {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn flush(&self, fd: &OwnedFd) -> rustix::io::Result<()> {
        // A plan decides itself what is durable, and tests have thousands of runs to do.
        if self.is_watched() {
            Ok(())
        } else {
            retry(|| sys::fsync(fd))
        }
    }

    fn step(&self, op: impl Fn() -> Op) -> rustix::io::Result<()> {
        match &self.0.plan {
            None => Ok(()),
            Some(plan) => retry(|| plan.before(op())),
        }
    }

    fn error(&self, action: &'static str, path: &str, errno: Errno) -> FsError {
        FsError {
            action,
            path: self.0.base.join(path),
            errno,
        }
    }

    /// The directory that holds `path`, and the last component's name.
    fn parent<'p>(&self, path: &'p str) -> rustix::io::Result<(OwnedFd, &'p str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        if matches!(name, "" | "." | "..") {
            return Err(Errno::INVAL);
        }
        Ok((
            self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?,
            name,
        ))
    }

    /// Opens `path` beneath the root without following any symbolic link.
    fn resolve(&self, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        if self.0.openat2 {
            return retry(
                || match sys::openat2(&self.0.root, path, flags, mode, RESOLVE) {
                    // A rename somewhere in the tree raced with the look-up of this path.
                    Err(Errno::AGAIN) => Err(Errno::INTR),
                    // A symbolic link is no directory either, but it is there.
                    Err(Errno::NOTDIR) if self.ends_in_link(path) => Err(Errno::LOOP),
                    other => other,
                },
            );
        }
        self.walk(path, flags, mode)
    }

    fn ends_in_link(&self, path: &str) -> bool {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        sys::openat2(&self.0.root, path, flags, Mode::empty(), RESOLVE)
            .and_then(sys::fstat)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
    }

    fn walk(&self, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir: Option<OwnedFd> = None;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if part.is_empty() || part == ".." {
                return Err(Errno::INVAL);
            }
            let at: BorrowedFd<'_> = dir.as_ref().map_or(self.0.root.as_fd(), AsFd::as_fd);
            // As above.
            let refused = |errno| match sys::statat(at, part, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat)
                    if errno == Errno::NOTDIR
                        && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink =>
                {
                    Errno::LOOP
                }
                _ => errno,
            };
            if parts.peek().is_none() {
                return retry(|| sys::openat(at, part, flags | OFlags::NOFOLLOW, mode))
                    .map_err(refused);
            }
            let next = retry(|| sys::openat(at, part, step, Mode::empty())).map_err(refused)?;
            dir = Some(next);
        }
        Err(Errno::INVAL)
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;

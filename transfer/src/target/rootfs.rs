//! Files beneath a root file system that is not ours: an image's, or the running one.
//!
//! Absolute symbolic links in it mean paths within it, as they will when it is `/`, and none leads
//! out. Each directory on the way is opened from the one before without following links, so a tree
//! that changes meanwhile cannot lead us astray either. (The kernel's `RESOLVE_IN_ROOT` does the
//! same, but makes no directories.)

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, Uid, fchmod, fchown, flock, fstat,
    fsync, mkdirat, openat, readlinkat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use thiserror::Error;

/// Symbolic links followed in one path before it is called a loop, as in the kernel.
const MAX_LINKS: u32 = 40;
/// Most names that a directory of drop-ins may have.
const MAX_NAMES: usize = 4096;
/// For directories that serve as a place only.
const PLACE: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// For directories that are read or synced.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A failed operation.
#[derive(Debug, Error)]
#[error("cannot {what} {path} in {root}: {source}")]
pub struct RootFsError {
    what: &'static str,
    path: String,
    root: PathBuf,
    source: io::Error,
}

/// A root file system, locked against a second writer for as long as this lives.
#[derive(Debug)]
pub struct RootFs {
    root: OwnedFd,
    path: PathBuf,
}

/// A file that was read.
#[derive(Debug)]
pub struct Found {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
}

/// The directory that holds a file, and the file's name there. The name is no link.
struct Place {
    directory: OwnedFd,
    name: Vec<u8>,
}

impl RootFs {
    /// Opens the directory, to which a symbolic link may lead, and locks it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let opened = Self::open_to_read(path)?;
        flock(&opened.root, FlockOperation::NonBlockingLockExclusive).map_err(
            |error| match error {
                Errno::WOULDBLOCK => io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another bake is at work on it; wait until that is done",
                ),
                other => other.into(),
            },
        )?;
        Ok(opened)
    }

    /// Opens the directory for somebody who changes nothing, beside any number of others.
    pub fn open_to_read(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            root: rustix::fs::open(path, flags, Mode::empty())?,
            path: path.to_owned(),
        })
    }

    /// The directory, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, what: &'static str, path: &str) -> impl FnOnce(io::Error) -> RootFsError {
        let (path, root) = (path.to_owned(), self.path.clone());
        move |source| RootFsError {
            what,
            path,
            root,
            source,
        }
    }

    /// A regular file of at most `limit` bytes; `None` when there is none.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Found>, RootFsError> {
        self.try_read(path, limit).map_err(self.error("read", path))
    }

    fn try_read(&self, path: &str, limit: u64) -> io::Result<Option<Found>> {
        let Some(place) = self.locate(path, false)? else {
            return Ok(None);
        };
        // Without NONBLOCK, opening a pipe would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&place.directory, place.name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            opened => File::from(opened?),
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::other(format!("it is larger than {limit} bytes")));
        }
        Ok(Some(Found {
            bytes,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
        }))
    }

    /// The names in a directory, sorted; none when there is no directory.
    pub fn names(&self, path: &str) -> Result<Vec<String>, RootFsError> {
        self.try_names(path).map_err(self.error("list", path))
    }

    fn try_names(&self, path: &str) -> io::Result<Vec<String>> {
        let Some(place) = self.locate(path, false)? else {
            return Ok(Vec::new());
        };
        let directory = match openat(&place.directory, place.name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            opened => opened?,
        };
        let mut names = Vec::new();
        for entry in Dir::new(directory)? {
            // A name that is no text is none that anybody reads.
            if let Ok(name) = entry?.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
            if names.len() > MAX_NAMES {
                return Err(io::Error::other(format!(
                    "it has more than {MAX_NAMES} names"
                )));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The directories above `path` that are not there, outermost first.
    pub fn missing_directories(&self, path: &str) -> Result<Vec<String>, RootFsError> {
        let mut missing = Vec::new();
        let ends = path
            .match_indices('/')
            .map(|(at, _)| at)
            .filter(|at| *at > 0);
        for end in ends {
            let parent = &path[..end];
            let there = match self.locate(parent, false) {
                Ok(Some(place)) => {
                    statat(&place.directory, &place.name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
                }
                Ok(None) => false,
                Err(error) => return Err(self.error("look at", parent)(error)),
            };
            if !there {
                missing.push(parent.to_owned());
            }
        }
        Ok(missing)
    }

    /// Writes a file, whole or not at all, and syncs it. An existing one keeps its owner and, when
    /// `mode` is `None`, its mode. Missing directories are made, open to all to read except `.docker`.
    pub fn write(&self, path: &str, content: &[u8], mode: Option<u32>) -> Result<(), RootFsError> {
        self.try_write(path, content, mode)
            .map_err(self.error("write", path))
    }

    fn try_write(&self, path: &str, content: &[u8], mode: Option<u32>) -> io::Result<()> {
        let place = self.locate(path, true)?.ok_or(Errno::NOENT)?;
        let old = match statat(&place.directory, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            old => Some(old?),
        };
        if let Some(old) = &old
            && FileType::from_raw_mode(old.st_mode) != FileType::RegularFile
        {
            return Err(io::Error::other(
                "something that is no regular file is there",
            ));
        }
        let mut draft_name = b".".to_vec();
        draft_name.extend(&place.name);
        draft_name.extend(format!(".bake-{}", std::process::id()).bytes());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let create = || openat(&place.directory, &draft_name, flags, Mode::from(0o600));
        let draft = match create() {
            Err(Errno::EXIST) => {
                // Left by a process of our number that died.
                unlinkat(&place.directory, &draft_name, AtFlags::empty())?;
                create()?
            }
            created => created?,
        };
        let written = (|| {
            let mut draft = File::from(draft);
            draft.write_all(content)?;
            if let Some(old) = &old {
                let now = fstat(&draft)?;
                if (now.st_uid, now.st_gid) != (old.st_uid, old.st_gid) {
                    let (uid, gid) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
                    fchown(&draft, Some(uid), Some(gid))?;
                }
            }
            let kept = old.as_ref().map_or(0o644, |old| old.st_mode & 0o7777);
            fchmod(&draft, Mode::from(mode.unwrap_or(kept)))?;
            draft.sync_all()?;
            renameat(&place.directory, &draft_name, &place.directory, &place.name)?;
            sync(place.directory.as_fd())
        })();
        if written.is_err() {
            let _ = unlinkat(&place.directory, &draft_name, AtFlags::empty());
        }
        written
    }

    /// Removes a file. One that is not there is gone already.
    pub fn remove(&self, path: &str) -> Result<(), RootFsError> {
        let removed = self.locate(path, false).and_then(|place| match place {
            None => Ok(()),
            Some(place) => match unlinkat(&place.directory, &place.name, AtFlags::empty()) {
                Ok(()) => sync(place.directory.as_fd()),
                Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(error.into()),
            },
        });
        removed.map_err(self.error("remove", path))
    }

    /// Removes a directory if it is empty, and says whether it is gone.
    pub fn remove_directory(&self, path: &str) -> Result<bool, RootFsError> {
        let removed = self.locate(path, false).and_then(|place| match place {
            None => Ok(true),
            Some(place) => match unlinkat(&place.directory, &place.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => Ok(true),
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY | Errno::NOTDIR) => Ok(false),
                Err(error) => Err(error.into()),
            },
        });
        removed.map_err(self.error("remove", path))
    }

    /// Where a path leads, links followed within the root. `None` when a directory on the way is
    /// missing and not to be made; the last name may or may not exist.
    fn locate(&self, path: &str, make: bool) -> io::Result<Option<Place>> {
        let mut todo: VecDeque<Vec<u8>> = components(path.as_bytes()).collect();
        let mut above: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                // Above the root is the root.
                above.pop();
                continue;
            }
            let at = above.last().map_or(self.root.as_fd(), AsFd::as_fd);
            let kind = match statat(at, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(error.into()),
            };
            if kind == Some(FileType::Symlink) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(at, &name, Vec::new())?.into_bytes();
                if target.starts_with(b"/") {
                    above.clear();
                }
                for part in components(&target).rev() {
                    todo.push_front(part);
                }
                continue;
            }
            if todo.is_empty() {
                let directory = at.try_clone_to_owned()?;
                return Ok(Some(Place { directory, name }));
            }
            let next = match kind {
                None if make => make_directory(at, &name)?,
                None => return Ok(None),
                Some(_) => openat(at, &name, PLACE, Mode::empty())?,
            };
            above.push(next);
        }
        Err(io::Error::other("it leads to a directory"))
    }
}

fn make_directory(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let mode = Mode::from(if name == b".docker" { 0o700 } else { 0o755 });
    mkdirat(at, name, mode)?;
    let made = openat(at, name, DIRECTORY, Mode::empty())?;
    // The umask may have taken bits away; it never adds any.
    fchmod(&made, mode)?;
    sync(at)?;
    Ok(made)
}

fn sync(directory: BorrowedFd<'_>) -> io::Result<()> {
    let opened = openat(directory, ".", DIRECTORY, Mode::empty())?;
    match fsync(opened) {
        // Some file systems cannot sync a directory.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn links_are_followed_within_the_root_and_not_out_of_it() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("data/etc")).unwrap();
        symlink("/data/etc", at("etc")).unwrap();
        symlink("../../../../../../data/sub", at("data/etc/up")).unwrap();
        symlink(outside.path(), at("data/etc/out")).unwrap();
        let root = RootFs::open(dir.path()).unwrap();
        root.write("/etc/a/b.conf", b"1", Some(0o644)).unwrap();
        assert_eq!(std::fs::read(at("data/etc/a/b.conf")).unwrap(), b"1");
        root.write("/etc/up/c.conf", b"2", Some(0o600)).unwrap();
        assert_eq!(std::fs::read(at("data/sub/c.conf")).unwrap(), b"2");
        // A link to the outside means the same path within, which has to be made.
        root.write("/etc/out/d.conf", b"3", None).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let within = outside.path().strip_prefix("/").unwrap().join("d.conf");
        assert_eq!(std::fs::read(dir.path().join(within)).unwrap(), b"3");
        // A link at the end is followed too, and stays a link.
        symlink("/data/real.json", at("data/etc/link.json")).unwrap();
        root.write("/etc/link.json", b"4", None).unwrap();
        assert!(at("data/etc/link.json").is_symlink());
        assert_eq!(root.read("/etc/link.json", 9).unwrap().unwrap().bytes, b"4");
        symlink("loop", at("loop")).unwrap();
        assert!(root.write("/loop/x", b"", None).is_err());
    }

    #[test]
    fn modes_are_right_and_owners_kept() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootFs::open(dir.path()).unwrap();
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
        root.write("/root/.docker/config.json", b"{}", Some(0o600))
            .unwrap();
        root.write("/etc/docker/daemon.json", b"{}", Some(0o644))
            .unwrap();
        assert_eq!(mode("root/.docker"), 0o700);
        assert_eq!(mode("root/.docker/config.json"), 0o600);
        assert_eq!(mode("etc/docker"), 0o755);
        assert_eq!(mode("etc/docker/daemon.json"), 0o644);
        let file = dir.path().join("etc/docker/daemon.json");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        root.write("/etc/docker/daemon.json", b"{ }", None).unwrap();
        assert_eq!(mode("etc/docker/daemon.json"), 0o640);
        assert_eq!(
            std::fs::read_dir(dir.path().join("etc/docker"))
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn only_regular_files_of_a_sane_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootFs::open(dir.path()).unwrap();
        assert!(root.read("/etc/none", 9).unwrap().is_none());
        std::fs::create_dir_all(dir.path().join("etc/d")).unwrap();
        assert!(root.read("/etc/d", 9).is_err());
        assert!(root.write("/etc/d", b"", None).is_err());
        std::fs::write(dir.path().join("etc/f"), "0123456789").unwrap();
        assert!(root.read("/etc/f", 9).is_err());
        assert!(root.read("/etc/f/x", 9).is_err());
        assert_eq!(root.names("/etc").unwrap(), ["d", "f"]);
        assert_eq!(
            root.missing_directories("/etc/d/x/y/z").unwrap(),
            ["/etc/d/x", "/etc/d/x/y"]
        );
        assert!(!root.remove_directory("/etc").unwrap());
        assert!(root.remove_directory("/etc/d").unwrap());
        root.remove("/etc/f").unwrap();
        root.remove("/etc/f").unwrap();
        assert!(RootFs::open(dir.path()).is_err(), "it is locked");
    }
}

//! What is shared: a path of the user's, opened once.
//!
//! Below what is shared a container makes what it likes, symbolic links too, and another shared path
//! may lie there. So a path is opened only as it was when the user gave it: canonical, with no link on
//! the way. What was opened is what is shared, whatever comes to stand there later.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags, fstat, openat,
        openat2, statx,
    },
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::nodes::own_path;

/// A path cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is nothing.
    #[error("volume source not found: {}", .0.display())]
    Missing(PathBuf),
    /// It is something that makes no sense in another machine.
    #[error("volume source {} is neither a directory nor a file", .0.display())]
    Kind(PathBuf),
    /// A symbolic link stands where none was.
    #[error(
        "volume source {} is now reached through a symbolic link, which was not there when the path \
         was given",
        .0.display()
    )]
    Link(PathBuf),
    /// It cannot be opened.
    #[error("volume source {}: {source}", path.display())]
    Io {
        /// What was to be opened.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SourceError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing(path) => Some(format!("make it first: mkdir -p {}", path.display())),
            Self::Link(path) => Some(format!(
                "a container may have made the link: look where it leads (namei -l {}), and remove \
                 it; if it is yours, remove the container and run it again with the path",
                path.display()
            )),
            _ => None,
        }
    }
}

/// What tells sources apart. The path counts too: other file systems may be mounted below.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

/// By which a directory is known again. Numbers are given anew when a directory is removed, so the
/// time of its making counts too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    dev: u64,
    ino: u64,
    /// Seconds and nanoseconds.
    born: (i64, u32),
}

/// A directory or file that is open for being a place, and for nothing else yet.
#[derive(Debug)]
pub struct Source {
    pub(super) fd: OwnedFd,
    directory: bool,
    path: PathBuf,
}

impl Source {
    /// Opens a canonical path; a symbolic link on the way is an error.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let opened = open_without_links(path);
        let fd = opened.map_err(|error| failed(path, error))?;
        Self::of(fd, path)
    }

    /// Opens a canonical path again that was given before. A directory that has moved since, and left
    /// a link behind, is known by its mark; of another one a link is no proof that it is meant.
    pub fn open_again(path: &Path, mark: Option<Mark>) -> Result<Self, SourceError> {
        let refused = match (Self::open(path), mark) {
            (Err(SourceError::Link(path)), Some(mark)) => (SourceError::Link(path), mark),
            (opened, _) => return opened,
        };
        let (refused, mark) = refused;
        let Ok(fd) = openat(CWD, path, PLACE, Mode::empty()) else {
            return Err(refused);
        };
        let at = std::fs::read_link(own_path(&fd));
        let at = at.map_err(|source| SourceError::Io {
            path: path.to_owned(),
            source,
        })?;
        match Self::of(fd, &at) {
            Ok(source) if source.mark() == Some(mark) => Ok(source),
            _ => Err(refused),
        }
    }

    fn of(fd: OwnedFd, path: &Path) -> Result<Self, SourceError> {
        let stat = fstat(&fd).map_err(|error| failed(path, error))?;
        let directory = match kind(&stat) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return Err(SourceError::Kind(path.to_owned())),
        };
        Ok(Self {
            fd,
            directory,
            path: path.to_owned(),
        })
    }

    /// By which it is known again: directories only, on file systems that note when one was made.
    pub fn mark(&self) -> Option<Mark> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let stat = statx(&self.fd, "", AtFlags::EMPTY_PATH, wanted).ok()?;
        let has = StatxFlags::from_bits_retain(stat.stx_mask).contains(wanted);
        (self.directory && has).then(|| Mark {
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        })
    }

    /// The canonical path by which it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is, and where: for as long as it is open, nothing else is the same.
    pub(super) fn identity(&self) -> io::Result<Identity> {
        let stat = fstat(&self.fd)?;
        Ok(Identity {
            path: std::fs::read_link(own_path(&self.fd))?,
            dev: stat.st_dev,
            ino: stat.st_ino,
        })
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.directory
    }
}

/// To be a place, and for nothing else.
const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

fn failed(path: &Path, error: Errno) -> SourceError {
    let path = path.to_owned();
    match error {
        Errno::NOENT => SourceError::Missing(path),
        Errno::LOOP => SourceError::Link(path),
        error => SourceError::Io {
            path,
            source: error.into(),
        },
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn open_without_links(path: &Path) -> rustix::io::Result<OwnedFd> {
    loop {
        match openat2(CWD, path, PLACE, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Linux before 5.6, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return step_by_step(path),
            other => return other,
        }
    }
}

/// The same without `openat2`: one component after the other, none of them a link.
fn step_by_step(path: &Path) -> rustix::io::Result<OwnedFd> {
    let start: &Path = if path.is_absolute() { "/" } else { "." }.as_ref();
    let mut here = openat(CWD, start, PLACE | OFlags::DIRECTORY, Mode::empty())?;
    for component in path.components() {
        let name = match component {
            Component::Prefix(_) | Component::RootDir | Component::CurDir => continue,
            Component::ParentDir => "..".as_ref(),
            Component::Normal(name) => name,
        };
        let next = openat(
            here.as_fd(),
            name.as_bytes(),
            PLACE | OFlags::NOFOLLOW,
            Mode::empty(),
        )?;
        if kind(&fstat(&next)?) == FileType::Symlink {
            return Err(Errno::LOOP);
        }
        here = next;
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// Both ways to open must agree.
    fn both(path: &Path) -> [Result<(), Errno>; 2] {
        [
            open_without_links(path).map(drop),
            step_by_step(path).map(drop),
        ]
    }

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("real/below")).unwrap();
        fs::write(dir.join("real/file"), "x").unwrap();
        symlink("real", dir.join("link")).unwrap();
        symlink("file", dir.join("real/link")).unwrap();
        for path in ["", "real", "real/below", "real/file", "real/below/.."] {
            assert_eq!(both(&dir.join(path)), [Ok(()), Ok(())], "{path}");
        }
        for path in ["link", "link/below", "link/../real", "real/link"] {
            assert_eq!(both(&dir.join(path)), [Err(Errno::LOOP); 2], "{path}");
        }
        assert_eq!(both(&dir.join("none/x")), [Err(Errno::NOENT); 2]);
        assert_eq!(both(&dir.join("real/file/x")), [Err(Errno::NOTDIR); 2]);
        let error = Source::open(&dir.join("link/below")).unwrap_err();
        assert!(error.to_string().contains("link/below"), "{error}");
        assert!(error.hint().unwrap().contains("namei -l"));
    }

    #[test]
    fn what_was_opened_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let given = dir.join("given");
        fs::create_dir(&given).unwrap();
        fs::create_dir(dir.join("secret")).unwrap();
        let source = Source::open(&given).unwrap();
        let before = source.identity().unwrap();
        fs::rename(&given, dir.join("moved")).unwrap();
        symlink("secret", &given).unwrap();
        let after = source.identity().unwrap();
        assert_eq!((before.dev, before.ino), (after.dev, after.ino));
        assert_eq!(after.path, dir.join("moved"));
    }

    #[test]
    fn a_path_that_is_given_again_is_the_one_of_before() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let given = dir.join("given");
        fs::create_dir(&given).unwrap();
        fs::create_dir(dir.join("secret")).unwrap();
        let mark = Source::open(&given).unwrap().mark();
        assert!(Source::open_again(&given, mark).is_ok());

        // Moved by the user, with a link in its place: the same one, where this can be told.
        fs::rename(&given, dir.join("moved")).unwrap();
        symlink("moved", &given).unwrap();
        match (Source::open_again(&given, mark), mark) {
            (Ok(source), Some(_)) => assert_eq!(source.path(), dir.join("moved")),
            (Err(SourceError::Link(_)), None) => {}
            other => panic!("{other:?}"),
        }
        assert!(Source::open_again(&given, None).is_err());

        // Another one behind the link.
        fs::remove_file(&given).unwrap();
        symlink("secret", &given).unwrap();
        let error = Source::open_again(&given, mark).unwrap_err();
        assert!(matches!(&error, SourceError::Link(path) if *path == given));

        // Removed and made again: it is the user's to say what is there.
        fs::remove_file(&given).unwrap();
        fs::create_dir(&given).unwrap();
        assert!(Source::open_again(&given, mark).is_ok());
        fs::remove_dir(&given).unwrap();
        let error = Source::open_again(&given, mark).unwrap_err();
        assert!(matches!(error, SourceError::Missing(_)));
    }
}

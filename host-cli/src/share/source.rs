//! What is shared: a path of the user's, opened once.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

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

/// A directory or file that is open for being a place, and for nothing else yet.
#[derive(Debug)]
pub struct Source {
    pub(super) fd: OwnedFd,
    directory: bool,
}

impl Source {
    /// Opens a path, through links: it is the user's own.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = openat(CWD, path, flags, Mode::empty())
            .and_then(|fd| fstat(&fd).map(|stat| (fd, stat)));
        let (fd, stat) = match opened {
            Ok(opened) => opened,
            Err(rustix::io::Errno::NOENT) => return Err(SourceError::Missing(path.to_owned())),
            Err(error) => {
                return Err(SourceError::Io {
                    path: path.to_owned(),
                    source: error.into(),
                });
            }
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Self {
                fd,
                directory: true,
            }),
            FileType::RegularFile => Ok(Self {
                fd,
                directory: false,
            }),
            _ => Err(SourceError::Kind(path.to_owned())),
        }
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

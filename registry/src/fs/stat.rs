//! What is known of a file without reading it.

use rustix::fs::{self as sys, FileType};

/// What an entry of a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, socket, pipe or device: never touched.
    Other,
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            _ => Self::Other,
        }
    }
}

/// Identifies one state of one file: replaced or rewritten files have another stamp, except for a
/// rewrite in place within one tick of the file system's clock (see [`Stamp::settled`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, u64),
    pub(super) changed: (i64, u64),
}

impl Stamp {
    /// Whether the last change lies so far back, as seen at `now` (seconds since the epoch), that a
    /// later change must show in the stamp. Time stamps tick every few milliseconds on local file
    /// systems and once in two seconds on the coarsest.
    pub fn settled(&self, now: u64) -> bool {
        i64::try_from(now).is_ok_and(|now| self.changed.0.saturating_add(2) < now)
    }

    /// Whether this is the same file with the same content, whatever was done to its name.
    pub fn same_content(&self, other: &Self) -> bool {
        (self.inode, self.size, self.modified) == (other.inode, other.size, other.modified)
    }

    /// Whether this is the same file, whatever was written to it.
    pub fn same_file(&self, other: &Self) -> bool {
        self.inode == other.inode
    }

    /// Last modification, in seconds since the epoch.
    pub fn modified_secs(&self) -> i64 {
        self.modified.0
    }

    /// Nanoseconds beyond [`Stamp::modified_secs`].
    pub fn modified_nanos(&self) -> u32 {
        u32::try_from(self.modified.1).unwrap_or(0)
    }
}

/// What is known of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Its length in bytes.
    pub size: u64,
    /// Its state.
    pub stamp: Stamp,
}

impl From<sys::Stat> for Stat {
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_sign_loss,
        reason = "the width and sign of stat's fields differ between architectures"
    )]
    fn from(stat: sys::Stat) -> Self {
        let size = stat.st_size as u64;
        Self {
            kind: FileType::from_raw_mode(stat.st_mode).into(),
            size,
            stamp: Stamp {
                inode: stat.st_ino as u64,
                size,
                modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
                changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
            },
        }
    }
}

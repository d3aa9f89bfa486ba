//! Small files beside the storage, as certificates and lists of users: read whole, and read again
//! when somebody replaces them. Other than within the storage, links are followed: where these files
//! lie is the administrator's word, not a client's.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{self as sys, OFlags};

use super::stat::{Kind, Stamp, Stat};

/// One such file.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    /// Most bytes that are read.
    limit: u64,
}

impl Watched {
    pub(crate) fn new(path: impl Into<PathBuf>, limit: u64) -> Self {
        Self {
            path: path.into(),
            limit,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The state of the file, to be compared; `None` when there is none to be seen.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        sys::stat(&self.path)
            .ok()
            .map(|stat| Stat::from(stat).stamp)
    }

    /// All of it.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        // A pipe would be waited for without end.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(sys::open(&self.path, flags, sys::Mode::empty())?);
        let stat = Stat::from(sys::fstat(&file)?);
        if stat.kind != Kind::File {
            return Err(io::Error::other("it is not a regular file"));
        }
        let too_long = || io::Error::other(format!("it is longer than {} bytes", self.limit));
        if stat.size > self.limit {
            return Err(too_long());
        }
        let mut content = Vec::new();
        file.take(self.limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > self.limit {
            return Err(too_long());
        }
        Ok(content)
    }
}

/// Notices changes of some files that are used together.
#[derive(Debug)]
pub(crate) struct Changes<const N: usize> {
    /// What they were like when they were read.
    read: [Option<Stamp>; N],
    /// What they were like at the last look.
    seen: [Option<Stamp>; N],
}

impl<const N: usize> Changes<N> {
    /// Nothing has changed since the files were like this.
    pub(crate) fn since(read: [Option<Stamp>; N]) -> Self {
        Self { read, seen: read }
    }

    /// Whether to read the files, which are like `now`. Many programs write a file in place and in
    /// steps, so what has changed is left alone until it is the same at two looks, unless it is to be
    /// read `at_once`.
    pub(crate) fn are_due(&mut self, now: [Option<Stamp>; N], at_once: bool) -> bool {
        let settled = at_once || now == self.seen;
        self.seen = now;
        if now == self.read || !settled {
            return false;
        }
        self.read = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_due_when_it_is_seen_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut states = Vec::new();
        for length in 0..3 {
            std::fs::write(&path, "x".repeat(length)).unwrap();
            states.push([Watched::new(&path, 5).stamp()]);
        }
        let [a, b, c] = states[..] else { panic!() };
        let mut changes = Changes::since(a);
        assert!(!changes.are_due(a, false));
        // Half written, then whole, then at rest.
        assert!(!changes.are_due(b, false));
        assert!(!changes.are_due(c, false));
        assert!(changes.are_due(c, false));
        assert!(!changes.are_due(c, false));
        // Gone for a moment.
        assert!(!changes.are_due([None], false));
        assert!(!changes.are_due(c, false));
        assert!(!changes.are_due(c, false));
        assert!(changes.are_due(b, true));
        assert!(!changes.are_due(b, true));
    }

    #[test]
    fn files_are_read_whole_within_their_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let watched = Watched::new(&path, 5);
        assert_eq!(watched.stamp(), None);
        assert!(watched.read().is_err());
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(watched.read().unwrap(), b"12345");
        let before = watched.stamp().unwrap();
        std::fs::write(dir.path().join("new"), "12346").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_ne!(watched.stamp().unwrap(), before);
        std::fs::write(&path, "123456").unwrap();
        assert!(watched.read().is_err());
        assert!(Watched::new(dir.path(), 5).read().is_err());
    }
}

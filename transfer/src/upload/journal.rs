//! Uploads that outlive the process that began them: where a registry waits for the rest of a blob is
//! kept in a small file, so that the next run goes on there.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use vdkr_core::digest::Digest;

use crate::client::Repository;
use crate::error::TransferError;

/// Longest URL that is kept, bytes.
const MAX_URL: u64 = 16 * 1024;
/// What is older is forgotten: registries purge uploads after days.
const MAX_AGE: Duration = Duration::from_hours(7 * 24);
/// Most files that are looked at for their age.
const MAX_FILES: usize = 4096;

/// A directory of unfinished uploads. What it holds is for its owner alone: the URL of an upload may
/// let its bearer write to it.
#[derive(Clone, Debug)]
pub struct UploadJournal {
    dir: PathBuf,
}

impl UploadJournal {
    /// Takes or makes the directory, and forgets what is too old.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, TransferError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let dir = dir.into();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|error| TransferError::io("create", &dir, error))?;
        let journal = Self { dir };
        journal.forget_old();
        Ok(journal)
    }

    fn forget_old(&self) {
        let Ok(files) = std::fs::read_dir(&self.dir) else {
            return;
        };
        for file in files.flatten().take(MAX_FILES) {
            let modified = file.metadata().and_then(|metadata| metadata.modified());
            let old = modified
                .ok()
                .and_then(|time| time.elapsed().ok())
                .is_some_and(|age| age > MAX_AGE);
            // One that is being used is held.
            if old && let Some(held) = open(&file.path(), false) {
                let _ = rustix::fs::unlink(file.path());
                drop(held);
            }
        }
    }

    /// Whether something is known of this upload. Another process may be at it.
    pub(crate) fn knows(&self, repository: &Repository, digest: &Digest) -> bool {
        let path = self.path(repository, digest);
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.len() > 0)
    }

    /// The entry of an upload, held until it is dropped; `None` while another upload of the same
    /// content to the same place holds it, or when it cannot be kept.
    pub(crate) fn entry(&self, repository: &Repository, digest: &Digest) -> Option<Entry> {
        let path = self.path(repository, digest);
        let mut file = open(&path, true)?;
        let mut url = String::new();
        file.by_ref().take(MAX_URL).read_to_string(&mut url).ok()?;
        Some(Entry { path, file, url })
    }

    fn path(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        let key = Digest::sha256(format!("{repository} {digest}").as_bytes());
        self.dir.join(key.hex())
    }
}

/// Opens and locks a file of ours.
fn open(path: &Path, create: bool) -> Option<File> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    if create {
        flags |= OFlags::CREATE;
    }
    // Whoever held it may remove it between our opening and our locking it.
    for _ in 0..8 {
        let mode = Mode::RUSR | Mode::WUSR;
        let file: File = rustix::fs::open(path, flags, mode).ok()?.into();
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return None,
        }
        let stat = rustix::fs::fstat(&file).ok()?;
        if stat.st_nlink > 0 {
            return Some(file);
        }
    }
    None
}

/// An upload that is under way.
#[derive(Debug)]
pub(crate) struct Entry {
    path: PathBuf,
    file: File,
    url: String,
}

impl Entry {
    /// Where the registry waits, as an earlier run knew it.
    pub(crate) fn url(&self) -> Option<&str> {
        (!self.url.is_empty()).then_some(self.url.as_str())
    }

    /// Keeps where the registry waits now.
    pub(crate) fn keep(&mut self, url: &str) {
        if self.url == url || url.len() as u64 > MAX_URL {
            return;
        }
        // What cannot be kept only costs the next run some time.
        let kept = self
            .file
            .write_all_at(url.as_bytes(), 0)
            .and_then(|()| self.file.set_len(url.len() as u64));
        if let Err(error) = kept {
            tracing::debug!(%error, "an upload cannot be noted");
            return;
        }
        url.clone_into(&mut self.url);
    }

    /// The upload is over.
    pub(crate) fn forget(self) {
        let _ = rustix::fs::unlink(&self.path);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.url.is_empty() {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use vdkr_core::reference::Host;

    use super::*;

    #[test]
    fn an_entry_is_held_by_one_and_kept_until_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let journal = UploadJournal::open(dir.path().join("uploads")).unwrap();
        let repository = Repository::new(Host::parse("h:1").unwrap(), "a").unwrap();
        let digest = Digest::sha256(b"x");
        let mut entry = journal.entry(&repository, &digest).unwrap();
        assert_eq!(entry.url(), None);
        assert!(journal.entry(&repository, &digest).is_none(), "it is held");
        entry.keep("http://h:1/a-long-url");
        entry.keep("http://h:1/short");
        drop(entry);
        assert!(journal.knows(&repository, &digest));
        let entry = journal.entry(&repository, &digest).unwrap();
        assert_eq!(entry.url(), Some("http://h:1/short"));
        entry.forget();
        assert!(!journal.knows(&repository, &digest));
        drop(journal.entry(&repository, &digest).unwrap());
        let left = std::fs::read_dir(dir.path().join("uploads"))
            .unwrap()
            .count();
        assert_eq!(left, 0);
        let mode = std::fs::metadata(dir.path().join("uploads"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}

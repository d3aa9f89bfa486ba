//! Uploads to a registry whose storage this process may write to: the bytes of a session are copied
//! from file to file, by the kernel, instead of through a connection. The registry reads them there,
//! hashes them and decides, as it does for a session that was interrupted.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, copy_file_range, fadvise};
use rustix::io::Errno;
use vdkr_core::digest::Digest;

use crate::client::Repository;
use crate::progress::{Progress, ProgressEvent};

/// Smaller blobs are not worth the detour, bytes.
pub(super) const WORTHWHILE: u64 = 4 * 1024 * 1024;
/// How much the kernel copies at once, bytes.
const STEP: u64 = 8 * 1024 * 1024;

/// The upload sessions of registries whose storage lies on this machine.
pub trait LocalSessions: Send + Sync {
    /// The file that holds the bytes of a session, open for writing; made when there is none yet.
    /// `None`: not one of these registries, or not for this user. May block.
    fn open(&self, repository: &Repository, session: &str) -> Option<File>;
}

/// A file that holds nothing but some content, from `start` to its end.
#[derive(Clone, Debug)]
pub struct WholeFile {
    /// The open file.
    pub file: Arc<File>,
    /// Where the content begins, in bytes.
    pub start: u64,
    /// How much there is, in bytes.
    pub size: u64,
}

/// One copy from file to file.
pub(super) struct Copying {
    pub(super) from: WholeFile,
    pub(super) to: File,
    pub(super) digest: Digest,
    pub(super) progress: Progress,
    pub(super) stopped: Arc<AtomicBool>,
}

impl Copying {
    /// Copies what is missing behind the bytes that the session has. Whether it has all of them then:
    /// what went wrong is found out by whoever goes on by the ordinary way.
    pub(super) fn run(self) -> bool {
        let Ok(had) = self.to.metadata().map(|metadata| metadata.len()) else {
            return false;
        };
        let whole = self.copy(had);
        if !whole {
            // The registry is still where it was for whoever goes on.
            let _ = self.to.set_len(had);
        }
        whole
    }

    fn copy(&self, mut at: u64) -> bool {
        let size = self.from.size;
        while at < size && !self.stopped.load(Ordering::Relaxed) {
            let mut from = self.from.start + at;
            let mut to = at;
            let step = STEP.min(size - at) as usize;
            match copy_file_range(
                &self.from.file,
                Some(&mut from),
                &self.to,
                Some(&mut to),
                step,
            ) {
                Ok(0) => return false,
                Ok(count) => {
                    // The disk begins its work now, not when the registry syncs.
                    let _ = fadvise(&self.to, at, None, Advice::DontNeed);
                    at += count as u64;
                    self.progress.event(&ProgressEvent::Advanced {
                        digest: self.digest.clone(),
                        done: at,
                    });
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "the registry's storage cannot be written to directly");
                    return false;
                }
            }
        }
        at == size
    }
}

/// Tells a copy on another thread that nobody waits for it any more.
pub(super) struct StopOnDrop(pub(super) Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::silent;

    fn copying(content: &[u8], start: u64, has: &[u8]) -> (Copying, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, content).unwrap();
        std::fs::write(&to, has).unwrap();
        let copying = Copying {
            from: WholeFile {
                file: Arc::new(File::open(&from).unwrap()),
                start,
                size: content.len() as u64 - start,
            },
            to: File::options().read(true).write(true).open(&to).unwrap(),
            digest: Digest::sha256(b""),
            progress: silent(),
            stopped: Arc::default(),
        };
        (copying, dir)
    }

    #[test]
    fn the_rest_of_the_content_is_copied() {
        let content: Vec<u8> = (0..3 * STEP + 5).map(|at| (at % 251) as u8).collect();
        for (start, has) in [(0, 0), (7, 0), (0, 1000), (7, STEP as usize + 1)] {
            let wanted = &content[start as usize..];
            let (copying, dir) = copying(&content, start, &wanted[..has]);
            assert!(copying.run());
            assert!(std::fs::read(dir.path().join("to")).unwrap() == wanted);
        }
    }

    #[test]
    fn what_is_not_whole_is_said_to_be_so() {
        let (stopped, _dir) = copying(b"content", 0, b"");
        stopped.stopped.store(true, Ordering::Relaxed);
        assert!(!stopped.run());
        let (mut short, _dir) = copying(b"content", 0, b"");
        short.from.size += 1;
        assert!(!short.run());
        let (longer, _dir) = copying(b"content", 0, b"content and more");
        assert!(!longer.run());
        let (mut unwritable, dir) = copying(b"content", 0, b"");
        unwritable.to = File::open(dir.path().join("to")).unwrap();
        assert!(!unwritable.run());
        let (mut gone, dir) = copying(&[1; 100], 0, b"con");
        gone.from.size = 200;
        assert!(!gone.run());
        assert_eq!(std::fs::read(dir.path().join("to")).unwrap(), b"con");
    }
}

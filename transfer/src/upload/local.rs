//! Uploads to a registry whose storage this process may write to: the bytes of a session are copied
//! from file to file, by the kernel, instead of through a connection. The registry reads them there,
//! hashes them and decides, as it does for a session that was interrupted.

use std::fs::File;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use rustix::fs::{Advice, FallocateFlags, copy_file_range, fadvise, fallocate};
use rustix::io::Errno;
use vdkr_core::digest::Digest;

use crate::client::Repository;
use crate::progress::{Progress, ProgressEvent};

/// Smaller blobs are not worth the detour, bytes.
pub(super) const WORTHWHILE: u64 = 4 * 1024 * 1024;
/// How much the kernel copies at once, bytes.
const STEP: u64 = 8 * 1024 * 1024;
/// How many steps the copy may be ahead of the disk.
const AHEAD: usize = 32;
/// Stack of a thread that waits for the disk, bytes.
const STACK: usize = 64 * 1024;

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
        if at < size {
            // With its place on the disk found beforehand, the copy does not wait for the search that goes
            // with each write to the disk. Where that cannot be done, or only in part, the copy shows.
            let _ = fallocate(&self.to, FallocateFlags::KEEP_SIZE, at, size - at);
        }
        let disk = Writeback::begin(&self.to);
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
                    disk.add(at, count as u64);
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

/// Has the disk begin its work now, not when the registry syncs. The kernel makes whoever asks for that
/// wait while the disk's queue is full, so a thread asks that does nothing else: the copy goes on at
/// the speed of memory, and the registry can begin to hash.
struct Writeback(Option<SyncSender<(u64, u64)>>);

impl Writeback {
    /// Without a thread or a second handle there is no early start, and the sync has all to do.
    fn begin(file: &File) -> Self {
        let Ok(file) = file.try_clone() else {
            return Self(None);
        };
        let (sender, copied) = sync_channel::<(u64, u64)>(AHEAD);
        let work = move || {
            for (at, count) in copied {
                // Dirty pages are queued for writing by this, and stay cached as long as they are dirty.
                let _ = fadvise(&file, at, NonZeroU64::new(count), Advice::DontNeed);
            }
        };
        // Nobody waits for it: what it does is only a hint.
        let begun = thread::Builder::new().stack_size(STACK).spawn(work);
        Self(begun.is_ok().then_some(sender))
    }

    fn add(&self, at: u64, count: u64) {
        if let Some(sender) = &self.0 {
            let _ = sender.send((at, count));
        }
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
    fn place_that_was_found_is_not_kept_by_a_copy_that_failed() {
        use std::os::unix::fs::MetadataExt as _;
        let (copying, dir) = copying(b"content", 0, b"con");
        let place = 64 * 1024 * 1024;
        // A source that ends long before it should: more is asked for than comes.
        let short = Copying {
            from: WholeFile {
                size: place,
                ..copying.from
            },
            ..copying
        };
        assert!(!short.run());
        let to = std::fs::metadata(dir.path().join("to")).unwrap();
        assert_eq!(to.len(), 3);
        assert!(to.blocks() * 512 < place / 2, "{} blocks", to.blocks());
    }

    #[test]
    fn the_disk_may_be_far_behind_or_out_of_reach() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("file")).unwrap();
        let disk = Writeback::begin(&file);
        for at in 0..4 * AHEAD as u64 {
            disk.add(at * STEP, STEP);
        }
        // Nobody there to take it.
        let (sender, receiver) = sync_channel(AHEAD);
        drop(receiver);
        for disk in [Writeback(Some(sender)), Writeback(None)] {
            for at in 0..4 * AHEAD as u64 {
                disk.add(at, 1);
            }
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

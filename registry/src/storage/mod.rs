//! The storage: content and names on a file system, in the layout of the CNCF Distribution project.
//!
//! ```text
//! <root>/docker/registry/v2
//! ├── blobs/<algorithm>/<first two digits>/<digits>/data        content, once for all repositories
//! ├── repositories/<name>
//! │   ├── _layers/<algorithm>/<digits>/link                     this repository may serve the blob
//! │   ├── _manifests
//! │   │   ├── revisions/<algorithm>/<digits>/link               this repository has the manifest
//! │   │   └── tags/<tag>
//! │   │       ├── current/link                                  what the tag points to
//! │   │       └── index/<algorithm>/<digits>/link               what it ever pointed to
//! │   ├── _uploads/<uuid>/{data,startedat}                      uploads under way
//! │   └── _vdkr
//! │       ├── pins/<algorithm>/<digits>/link                    ours: manifests that are pinned
//! │       └── deleted/<tag>                                     ours: what a deleted tag pointed to
//! └── _vdkr
//!     ├── tmp/<process>/<number>                                ours: files before they get a name
//!     └── quarantine/                                           ours: what is not what its name said
//! ```
//!
//! A link is a small file that holds a digest. Everything gets its name by a rename of a file that was
//! written and synced before, so that no reader, neither this server nor another on the same tree, ever
//! sees a part of it; and nothing is acknowledged before its name is durable (see [`durable`]).
//!
//! A push comes in waves, and a crash between any two leaves a legal state: blob, link of the blob,
//! manifest, revision and tag index, tag. Deleting goes the other way.
//!
//! The methods block on the disk. The tree is the truth: caches are checked against it on every use,
//! because another process may serve or clean the same tree.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use vdkr_core::digest::Digest;

use crate::fs::{self, Fs, FsError};
use cache::Cache;
use durable::{Durable, Staged};

mod blobs;
mod cache;
mod catalog;
mod durable;
mod fsck;
mod gc;
mod history;
mod images;
mod links;
mod local;
mod locks;
mod manifests;
mod nesting;
mod paths;
mod recovery;
mod referrers;
mod tags;
mod uploads;
mod uses;

pub use blobs::Blob;
pub use local::LocalUploads;
pub(crate) use manifests::type_of;
pub use manifests::{Condition, Manifest, NewManifest, Wanted};
pub use recovery::Swept;
pub use referrers::Referrers;
pub use uploads::{Session, Sink, UploadId};

/// Why the storage could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The file system refused.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The content received is not what its digest promises.
    #[error("content has the digest {got}, not {expected}")]
    DigestMismatch {
        /// What the client announced.
        expected: Digest,
        /// What arrived.
        got: Digest,
    },
    /// A manifest names what this repository does not have.
    #[error("{} of the blobs and manifests named are unknown to the repository", .0.len())]
    MissingReferences(Vec<Digest>),
    /// A manifest names something with a size that it does not have: clients would refuse it.
    #[error("the manifest says that {digest} has {told} bytes, and it has {there}")]
    WrongSize {
        /// What it names.
        digest: Digest,
        /// The size that it tells.
        told: u64,
        /// The size of what is there.
        there: u64,
    },
    /// Indexes nest deeper than the registry and its clients go.
    #[error(
        "its indexes nest more than {} manifests deep; name the images in fewer indexes",
        nesting::DEEPEST
    )]
    NestsTooDeep,
    /// More hangs from an index than is looked through for one request.
    #[error(
        "more than {} manifests or {} MiB of them hang from it; push them in several indexes",
        nesting::MOST_BELOW, nesting::BYTES_BELOW >> 20
    )]
    HasTooMany,
    /// The condition of the request does not hold.
    #[error("the tag or manifest is not in the state that the request asks for")]
    ConditionFailed {
        /// What is there now.
        current: Option<Digest>,
    },
    /// The repository has a manifest or tag, and its content is not what it should be. Not the same as
    /// not having it: whoever is told that it is unknown looks for it elsewhere.
    #[error("{0} is damaged in this registry; push it again")]
    Damaged(String),
    /// There is no such upload session, or no longer.
    #[error("upload session unknown")]
    UploadUnknown,
    /// Somebody wrote to the file of an upload session without asking.
    #[error(
        "the file of the upload has {length} bytes where {offset} were received: somebody else wrote \
         to it; send the blob again"
    )]
    UploadDisturbed {
        /// Bytes in the file.
        length: u64,
        /// Bytes received and hashed.
        offset: u64,
    },
    /// A directory of the storage is none.
    #[error(
        "{} is a symbolic link or a file; the storage follows no links inside itself: put a directory \
         (or a mount) there, or name the directory that holds all of it", .0.display()
    )]
    NoDirectory(PathBuf),
    /// Somebody else keeps a directory locked.
    #[error(
        "{} has been locked by another process for {} seconds: another registry at work on this storage, \
         or a program of somebody who may read that directory (see: lsof, /proc/locks); wait for it, end \
         it, or take that right away (chmod)", .0.display(), locks::PATIENCE.as_secs()
    )]
    Locked(PathBuf),
    /// Garbage is being collected, or the storage checked, by somebody else.
    #[error(
        "another process collects garbage in this storage or checks it \
         (or its file system has no locks); try again when it is done"
    )]
    Busy,
    /// The work was told to stop before its end.
    #[error("stopped before the end")]
    Stopped,
}

/// Shorthand of this room.
pub type Result<T> = std::result::Result<T, StorageError>;

/// Bounds of what the storage keeps in memory.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes of manifests.
    pub manifest_bytes: usize,
    /// Number of links.
    pub links: usize,
    /// Bytes of what manifests say of themselves to those who ask for referrers.
    pub referrer_bytes: usize,
    /// Bytes of which manifests have nothing to say there.
    pub plain_bytes: usize,
    /// Bytes of what lists of images say of manifests.
    pub summary_bytes: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            manifest_bytes: 8 << 20,
            links: 16_384,
            referrer_bytes: 4 << 20,
            plain_bytes: 8 << 20,
            summary_bytes: 8 << 20,
        }
    }
}

/// What can be done with a storage.
#[derive(Clone, Debug)]
pub enum Standing {
    /// Everything.
    Writable,
    /// Nothing can be added as long as the disk is full.
    Full(FsError),
    /// Nothing can be changed: the file system is mounted so.
    ReadOnly(FsError),
}

/// The content and names under one storage root.
#[derive(Debug)]
pub struct Storage {
    fs: Fs,
    durable: Durable,
    locks: locks::Locks,
    /// None yet where there was no room for it.
    temporary: Mutex<Option<recovery::TemporaryDir>>,
    next_temporary: AtomicU64,
    standing: Standing,
    links: Cache<String, (fs::Stamp, Digest)>,
    manifests: Cache<Digest, Arc<manifests::Cached>>,
    subjects: Cache<Digest, Arc<referrers::Referrer>>,
    plain: Cache<[u8; 32], ()>,
    sessions: uploads::Sessions,
    uses: uses::Uses,
    summaries: Cache<String, Arc<images::Summary>>,
    maintenance: Mutex<()>,
}

impl Storage {
    /// Opens the tree, making its first directories, and clears what dead processes left behind.
    ///
    /// A storage on a full disk is opened, so that room can be made there, and one that is only to be
    /// read: [`Storage::standing`] tells.
    pub fn open(fs: Fs, memory: Memory) -> Result<Self> {
        for dir in FIRST {
            refuse_links(&fs, dir)?;
        }
        let made = make_first(&fs);
        if !matches!(&made, Err(error) if error.is_read_only()) {
            match recovery::clear_temporary(&fs) {
                // There was no room for the directory itself.
                Err(error) if error.is_not_found() && made.is_err() => {}
                cleared => cleared?,
            }
        }
        // What the dead left may have been what filled the disk.
        let made = match made {
            Ok((_, Some(_))) => make_first(&fs),
            Err(error) if error.is_no_space() => make_first(&fs),
            made => made,
        };
        let (temporary, standing) = match made {
            Ok((dir, None)) => (Some(dir), Standing::Writable),
            Ok((dir, Some(error))) => (Some(dir), Standing::Full(error)),
            Err(error) if error.is_no_space() => (None, Standing::Full(error)),
            Err(error) if error.is_read_only() => (None, Standing::ReadOnly(error)),
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            durable: Durable::new(fs.clone()),
            locks: locks::Locks::new(fs.clone(), locks::PATIENCE),
            temporary: Mutex::new(temporary),
            standing,
            next_temporary: AtomicU64::new(0),
            links: Cache::new(memory.links),
            manifests: Cache::new(memory.manifest_bytes),
            subjects: Cache::new(memory.referrer_bytes),
            plain: Cache::new(memory.plain_bytes),
            sessions: uploads::Sessions::default(),
            uses: uses::Uses::new(),
            summaries: Cache::new(memory.summary_bytes),
            maintenance: Mutex::new(()),
            fs,
        })
    }

    /// The file room beneath.
    pub fn fs(&self) -> &Fs {
        &self.fs
    }

    /// What could be done when it was opened.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// A new file under a name that nobody looks at.
    fn temporary(&self) -> Result<Staged> {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = {
            let mut dir = self.temporary_dir();
            if dir.is_none() {
                make_dirs(&self.fs, paths::TEMPORARY)?;
                *dir = Some(recovery::TemporaryDir::make(&self.fs)?.0);
            }
            dir.as_ref().map(|dir| format!("{}/{number}", dir.path()))
        };
        let path = path.ok_or_else(|| self.fs.interrupted())?;
        Ok(Staged::temporary(self.fs.create(&path)?))
    }

    fn temporary_dir(&self) -> MutexGuard<'_, Option<recovery::TemporaryDir>> {
        self.temporary
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A new file with this content.
    fn staged(&self, content: &[u8]) -> Result<Staged> {
        let staged = self.temporary()?;
        staged.file().write_at(content, 0)?;
        // Several such files go to the disk together when the first of them is synced.
        staged.file().begin_writeback(0);
        Ok(staged)
    }
}

/// Directories that every storage has.
const FIRST: [&str; 3] = [paths::BLOBS, paths::REPOSITORIES, paths::TEMPORARY];

/// Makes the first directories, and the one of this process.
fn make_first(fs: &Fs) -> fs::Result<(recovery::TemporaryDir, Option<FsError>)> {
    for dir in FIRST {
        make_dirs(fs, dir)?;
    }
    recovery::TemporaryDir::make(fs)
}

/// Refuses a storage part of which lies behind a symbolic link: none is followed, and all in it would
/// seem to be gone.
fn refuse_links(fs: &Fs, dir: &str) -> Result<()> {
    let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
    for end in ends {
        match fs.stat(&dir[..end])? {
            None => break,
            Some(stat) if stat.kind == fs::Kind::Directory => {}
            Some(_) => return Err(StorageError::NoDirectory(fs.base().join(&dir[..end]))),
        }
    }
    Ok(())
}

/// Makes a directory and those above it, promising nothing. Others may remove empty ones meanwhile.
fn make_dirs(fs: &Fs, dir: &str) -> fs::Result<()> {
    let mut tries = 1;
    loop {
        match fs.mkdir(dir) {
            Err(error)
                if error.is_not_found() && paths::parent(dir) != "." && tries < durable::TRIES =>
            {
                tries += 1;
                make_dirs(fs, paths::parent(dir))?;
            }
            done => return done.map(drop),
        }
    }
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |passed| passed.as_secs())
}

/// `size` random bytes as hexadecimal digits.
pub(crate) fn random_hex(size: usize) -> String {
    let mut bytes = vec![0_u8; size];
    let mut filled = 0;
    while filled < size {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            // The kernel has had no entropy source since boot; names stay unique by process and time.
            Err(_) => {
                let seed = format!("{:?}{}", SystemTime::now(), std::process::id());
                let digest = Digest::sha256(seed.as_bytes());
                return digest.hex()[..(size * 2).min(64)].to_owned();
            }
        }
    }
    bytes
        .iter()
        .fold(String::with_capacity(size * 2), |mut hex, byte| {
            use std::fmt::Write as _;
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

//! Machines saved with the agent up and no host greeted: a file with their memory, which every
//! start maps privately, and one with the state of their devices.
//!
//! ```text
//! <key>/snapshot.json   what the other two must be; made last, its time is that of the last use
//! <key>/memory, state   the machine
//! <key>/console.log     its boot
//! <key>.unusable        a machine of this key could not be started from its own snapshot: why
//! new-*, gone-*         on the way in and out; what a kill leaves of them is removed at the next build
//! lock                  held by the one who builds
//! ```
//!
//! A snapshot appears by one rename, after everything in it is durable, and is never written again.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Name of the description in a snapshot.
const DOCUMENT: &str = "snapshot.json";
/// Name of the memory.
const MEMORY: &str = "memory";
/// Name of the devices' state.
const STATE: &str = "state";
/// End of the name of a note about a key without snapshot.
const UNUSABLE: &str = "unusable";
/// Version of what a snapshot consists of; part of every key.
const FORMAT: u32 = 1;
/// Snapshots that are kept, those used last.
const KEPT: usize = 4;
/// Largest state of devices, in bytes.
const MAX_STATE: u64 = 64 << 20;
/// Longest description, in bytes.
const MAX_DOCUMENT: u64 = 64 * 1024;
/// How long a key is not tried again after its snapshot was found unusable.
const UNUSABLE_FOR: Duration = Duration::from_hours(7 * 24);
/// Room that must be left on the disk beside a machine's memory, in bytes.
const SPARE: u64 = 256 << 20;
/// How often a busy lock is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Names what a snapshot holds: everything that makes the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key of a machine that `facts` describe completely.
    pub fn new(facts: &Value) -> Self {
        let mut text = format!("{FORMAT}\n");
        text.push_str(&facts.to_string());
        Self(hex(&Sha256::digest(text.as_bytes())).split_off(32))
    }
}

/// What a file is as far as its outside shows. Its path is no part of it: images are reached by links.
pub fn identity(path: &Path) -> io::Result<String> {
    let meta = fs::metadata(path)?;
    Ok(format!(
        "{}:{} {} {}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    ))
}

/// A saved machine, opened and found to be what was saved.
#[derive(Debug)]
pub struct Saved {
    /// Its memory.
    pub memory: File,
    /// The state of its devices, from the beginning.
    pub state: File,
}

/// A snapshot in the making, for the holder of the lock alone. What is not published is removed.
#[derive(Debug)]
pub struct Unfinished {
    /// Empty memory.
    pub memory: File,
    /// An empty file.
    pub state: File,
    dir: PathBuf,
    key: Key,
    _lock: File,
}

impl Unfinished {
    /// Where the console of its boot goes.
    pub fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Published, or of no use.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What one who wants to build a snapshot gets.
#[derive(Debug)]
pub enum Turn {
    /// Somebody else has built it meanwhile.
    Saved(Saved),
    /// It is to be built.
    Build(Unfinished),
}

/// Why a snapshot cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was saved.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what way.
        reason: &'static str,
    },
    /// Others could have put something there.
    #[error("{} can be written by others than its owner", .0.display())]
    Open(PathBuf),
    /// The disk is full.
    #[error("{} has too little room for a machine's memory", .0.display())]
    NoRoom(PathBuf),
    /// Somebody else builds for too long.
    #[error("another command has been building a snapshot for {} s", .0.as_secs())]
    Busy(Duration),
}

impl SnapshotError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// What a snapshot's other files must be. The memory is too large to be read at every start; the
/// time of its last change shows whether somebody touched it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    format: u32,
    memory_inode: u64,
    memory_length: u64,
    memory_changed: (i64, i64),
    state_sha256: String,
}

impl Document {
    fn of(memory: &File, state: &mut File) -> io::Result<Self> {
        let meta = memory.metadata()?;
        let mut bytes = Vec::new();
        state.rewind()?;
        state.take(MAX_STATE).read_to_end(&mut bytes)?;
        state.rewind()?;
        Ok(Self {
            format: FORMAT,
            memory_inode: meta.ino(),
            memory_length: meta.len(),
            memory_changed: (meta.ctime(), meta.ctime_nsec()),
            state_sha256: hex(&Sha256::digest(&bytes)),
        })
    }
}

/// The snapshots of a user.
#[derive(Clone, Debug)]
pub struct Snapshots {
    dir: PathBuf,
}

impl Snapshots {
    /// Those in a cache directory.
    pub fn in_directory(cache_dir: &Path) -> Self {
        Self {
            dir: cache_dir.join("snapshots"),
        }
    }

    fn place(&self, key: &Key) -> PathBuf {
        self.dir.join(&key.0)
    }

    /// The snapshot of a key, when there is one.
    pub fn find(&self, key: &Key) -> Result<Option<Saved>, SnapshotError> {
        let place = self.place(key);
        let path = place.join(DOCUMENT);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SnapshotError::io(&path)(error)),
        };
        self.check_owner()?;
        let mut text = Vec::new();
        (&file)
            .take(MAX_DOCUMENT)
            .read_to_end(&mut text)
            .map_err(SnapshotError::io(&path))?;
        let damaged = |name: &str, reason| SnapshotError::Damaged {
            path: place.join(name),
            reason,
        };
        let wanted: Document =
            serde_json::from_slice(&text).map_err(|_| damaged(DOCUMENT, "it cannot be read"))?;
        let open = |name: &str, write: bool| {
            let path = place.join(name);
            let mut options = File::options();
            options.read(true).write(write);
            options.custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
            options.open(&path).map_err(SnapshotError::io(&path))
        };
        // The emulator wants to open memory for writing, also when it maps it privately.
        let (memory, mut state) = (open(MEMORY, true)?, open(STATE, false)?);
        let found = Document::of(&memory, &mut state).map_err(SnapshotError::io(&place))?;
        if found.format != wanted.format || found.state_sha256 != wanted.state_sha256 {
            return Err(damaged(STATE, "it is not what was saved"));
        }
        if found != wanted {
            return Err(damaged(MEMORY, "it was changed"));
        }
        // The last use decides what stays; whether it can be noted does not matter.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(Saved { memory, state }))
    }

    /// Why no snapshot of this key is to be tried.
    pub fn unusable(&self, key: &Key) -> Option<String> {
        let path = self.dir.join(format!("{}.{UNUSABLE}", key.0));
        let file = File::open(path).ok()?;
        if file
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(is_old)
        {
            return None;
        }
        let mut reason = String::new();
        file.take(1000).read_to_string(&mut reason).ok()?;
        Some(reason.trim().to_owned())
    }

    /// Notes that a key's snapshot is of no use, and removes it.
    pub fn condemn(&self, key: &Key, reason: &str) {
        let path = self.dir.join(format!("{}.{UNUSABLE}", key.0));
        // Without the note it is only tried again.
        let _ = fs::write(path, format!("{reason}\n"));
        self.discard(key);
    }

    /// Removes a key's snapshot. Machines that run from it keep what they have.
    pub fn discard(&self, key: &Key) {
        self.remove(&self.place(key));
    }

    /// Takes something out of sight at once, then out of the world.
    fn remove(&self, path: &Path) {
        let gone = self.dir.join(format!("gone-{}", unique()));
        // One who cannot rename finds that somebody else has.
        if fs::rename(path, &gone).is_ok() {
            let _ = fs::remove_dir_all(&gone);
        }
    }

    /// Waits for the right to build the snapshot of a key, for at most `patience`, and makes room.
    pub async fn begin(
        &self,
        key: &Key,
        memory_mib: u32,
        patience: Duration,
    ) -> Result<Turn, SnapshotError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(SnapshotError::io(&self.dir))?;
        self.check_owner()?;
        let path = self.dir.join("lock");
        let lock = private(&path).map_err(SnapshotError::io(&path))?;
        let begun = Instant::now();
        loop {
            if let Ok(Some(saved)) = self.find(key) {
                return Ok(Turn::Saved(saved));
            }
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if begun.elapsed() > patience => {
                    return Err(SnapshotError::Busy(patience));
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(PAUSE).await,
                Err(TryLockError::Error(error)) => return Err(SnapshotError::io(&path)(error)),
            }
        }
        // Between the look and the lock somebody may have finished.
        if let Ok(Some(saved)) = self.find(key) {
            return Ok(Turn::Saved(saved));
        }
        self.clear_up(KEPT - 1);
        let bytes = u64::from(memory_mib) << 20;
        let room = rustix::fs::statvfs(&self.dir)
            .map_err(|error| SnapshotError::io(&self.dir)(error.into()))?;
        if room.f_bavail.saturating_mul(room.f_frsize) < bytes + SPARE {
            return Err(SnapshotError::NoRoom(self.dir.clone()));
        }
        let dir = self.dir.join(format!("new-{}", unique()));
        let files = fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .and_then(|()| {
                let memory = private(&dir.join(MEMORY))?;
                memory.set_len(bytes)?;
                Ok((memory, private(&dir.join(STATE))?))
            });
        let (memory, state) = files.map_err(SnapshotError::io(&dir))?;
        Ok(Turn::Build(Unfinished {
            memory,
            state,
            dir,
            key: key.clone(),
            _lock: lock,
        }))
    }

    /// Makes a snapshot visible whose machine has been written and has ended.
    pub fn publish(&self, mut unfinished: Unfinished) -> Result<Saved, SnapshotError> {
        let dir = unfinished.dir.clone();
        let failed = |source| SnapshotError::io(&dir)(source);
        let length = unfinished.state.metadata().map_err(failed)?.len();
        if length == 0 || length > MAX_STATE {
            return Err(SnapshotError::Damaged {
                path: dir.join(STATE),
                reason: "its length cannot be right",
            });
        }
        let write = || -> io::Result<Document> {
            unfinished.memory.sync_all()?;
            unfinished.state.sync_all()?;
            let document = Document::of(&unfinished.memory, &mut unfinished.state)?;
            let mut file = private(&dir.join(DOCUMENT))?;
            file.write_all(&serde_json::to_vec_pretty(&document)?)?;
            file.sync_all()?;
            Ok(document)
        };
        let mut write = write;
        write().map_err(failed)?;
        let place = self.place(&unfinished.key);
        // A damaged one may still be in the way.
        self.remove(&place);
        fs::rename(&dir, &place)
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .map_err(SnapshotError::io(&place))?;
        let note = self.dir.join(format!("{}.{UNUSABLE}", unfinished.key.0));
        let _ = fs::remove_file(note);
        self.find(&unfinished.key)?
            .ok_or_else(|| SnapshotError::io(&place)(io::ErrorKind::NotFound.into()))
    }

    /// Removes what killed builders left and all but the `keep` snapshots that were used last. For
    /// the holder of the lock.
    fn clear_up(&self, keep: usize) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        let mut snapshots = Vec::new();
        for entry in entries.flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            if name.starts_with("new-") || name.starts_with("gone-") {
                let _ = fs::remove_dir_all(&path);
            } else if name.ends_with(UNUSABLE) {
                let modified = entry.metadata().and_then(|meta| meta.modified());
                if modified.is_ok_and(is_old) {
                    let _ = fs::remove_file(&path);
                }
            } else if path.is_dir() {
                let used = fs::metadata(path.join(DOCUMENT)).and_then(|meta| meta.modified());
                snapshots.push((used.unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
        }
        snapshots.sort();
        snapshots.reverse();
        for (_, path) in snapshots.into_iter().skip(keep) {
            self.remove(&path);
        }
    }

    /// A snapshot is a program: only its owner may have put it there.
    fn check_owner(&self) -> Result<(), SnapshotError> {
        let meta = fs::symlink_metadata(&self.dir).map_err(SnapshotError::io(&self.dir))?;
        let mine = meta.uid() == nix::unistd::geteuid().as_raw();
        if !mine || !meta.is_dir() || meta.mode() & 0o022 != 0 {
            return Err(SnapshotError::Open(self.dir.clone()));
        }
        Ok(())
    }
}

fn is_old(time: SystemTime) -> bool {
    time.elapsed().is_ok_and(|age| age > UNUSABLE_FOR)
}

/// A part of a file name that nobody else has.
fn unique() -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

fn private(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path)
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests;

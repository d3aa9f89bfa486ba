//! Files of the store: what is there after a crash is either the old content or the new.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use super::{
    ImageError,
    state::{FORMAT, State},
};

/// The document.
pub(super) const STATE: &str = "images.json";
const STATE_NEW: &str = "images.json.new";
/// Bytes of the document; some ten thousand images.
const MAX_STATE: u64 = 64 << 20;

/// The store's directory, held by this process alone.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    directory: File,
    lock: File,
}

impl Disk {
    /// Makes the directory if there is none, and takes it for this process.
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(path).map_err(ImageError::io("make", path))?;
        let directory = File::open(path).map_err(ImageError::io("open", path))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(ImageError::io("open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ImageError::Locked(path.to_owned()));
            }
            Err(error) => return Err(ImageError::io("lock", lock_path)(error)),
        }
        Ok(Self {
            path: path.to_owned(),
            directory,
            lock,
        })
    }

    /// The document, or an empty one.
    pub(super) fn load(&self) -> Result<State, ImageError> {
        let path = self.path.join(STATE);
        let _ = fs::remove_file(self.path.join(STATE_NEW));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(error) => return Err(ImageError::io("open", path)(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_STATE + 1)
            .read_to_end(&mut text)
            .map_err(ImageError::io("read", &path))?;
        let damaged = |reason: String| ImageError::Damaged {
            path: path.clone(),
            reason,
        };
        if text.len() as u64 > MAX_STATE {
            return Err(damaged(format!("it is longer than {MAX_STATE} bytes")));
        }
        let mut state: State =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if state.format > FORMAT {
            let format = state.format;
            return Err(damaged(format!(
                "it has format {format} of a later agent, this one knows {FORMAT}"
            )));
        }
        state.drop_dangling();
        Ok(state)
    }

    /// Replaces the document. When this returns, it stays.
    pub(super) fn save(&self, state: &State) -> Result<(), ImageError> {
        let path = self.path.join(STATE);
        let text = serde_json::to_vec(state).map_err(|error| ImageError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        Self::replace(&self.path.join(STATE_NEW), &path, &text)?;
        self.directory
            .sync_all()
            .map_err(ImageError::io("sync", &self.path))
    }

    fn replace(new: &Path, path: &Path, content: &[u8]) -> Result<(), ImageError> {
        let write = || {
            let mut file = File::create(new)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(new, path)
        };
        write().map_err(ImageError::io("write", path))
    }

    /// Writes a file that stays when this returns; one that is there already is left.
    pub(super) fn write_new(&self, path: &Path, content: &[u8]) -> Result<(), ImageError> {
        if fs::metadata(path).is_ok_and(|found| found.len() == content.len() as u64) {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(parent).map_err(ImageError::io("make", parent))?;
        Self::replace(&path.with_added_extension("new"), path, content)?;
        let sync = |path: &Path| File::open(path)?.sync_all();
        sync(parent).map_err(ImageError::io("sync", parent))
    }

    /// Makes everything on this file system durable that was written before.
    pub(super) fn sync(&self) -> Result<(), ImageError> {
        rustix::fs::syncfs(&self.directory).map_err(ImageError::io("sync", &self.path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // By hand: a child that is about to execute may still hold a copy of the descriptor.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// Makes a directory that only its owner may look into.
pub(super) fn make_private(path: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(ImageError::io("make", path))
}

/// The names in a directory.
pub(super) fn names(path: &Path) -> Result<Vec<std::ffi::OsString>, ImageError> {
    let read = || -> io::Result<_> {
        fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    };
    read().map_err(ImageError::io("list", path))
}

/// Reads a file of at most `limit` bytes, not through a link.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ImageError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file: File = rustix::fs::open(path, flags, Mode::empty())
        .map_err(ImageError::io("open", path))?
        .into();
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(ImageError::io("read", path))?;
    if content.len() as u64 > limit {
        return Err(ImageError::Damaged {
            path: path.to_owned(),
            reason: format!("it is longer than {limit} bytes"),
        });
    }
    Ok(content)
}

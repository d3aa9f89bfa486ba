//! Files of keys and certificates: written whole or not at all, with their modes from the start.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::error::PkiError;

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// How long another program's work is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// For the owner alone.
pub(crate) const PRIVATE: u32 = 0o600;
/// For everybody to read.
pub(crate) const PUBLIC: u32 = 0o644;

/// Makes a directory, and those above it, with this mode unless it is there.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| failed("make the directory", path, source))
}

/// Keeps others out until it is dropped.
pub(crate) fn lock(directory: &Path) -> Result<Flock<File>, PkiError> {
    let path = directory.join(".lock");
    let deadline = Instant::now() + PATIENCE;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|source| failed("lock", &path, source))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = back;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(PkiError::Locked(directory.to_owned()));
            }
            Err((_, errno)) => return Err(failed("lock", &path, errno.into())),
        }
    }
}

/// A file that was read.
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    /// Whether others than the owner may read it.
    pub(crate) shared: bool,
}

/// The whole file; `None` if it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Content>, PkiError> {
    let wrong = |reason: &str| PkiError::Content {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", path, source)),
    };
    let meta = file
        .metadata()
        .map_err(|source| failed("read", path, source))?;
    if !meta.is_file() {
        return Err(wrong("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| failed("read", path, source))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(wrong("it is longer than any key or certificate"));
    }
    Ok(Some(Content {
        bytes,
        shared: meta.mode() & 0o077 != 0,
    }))
}

/// Takes everybody else's rights to a file away.
pub(crate) fn protect(path: &Path) -> Result<(), PkiError> {
    std::fs::set_permissions(path, Permissions::from_mode(PRIVATE))
        .map_err(|source| failed("protect", path, source))
}

/// Puts a file in the place of the one that is there, if any. After a crash it is the old or the new
/// one, whole.
pub(crate) fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), PkiError> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed("write", path, ErrorKind::InvalidInput.into()));
    };
    let temporary = Temporary(directory.join(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    )));
    let open = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary.0)
    };
    let file = match open() {
        // Left by a killed process of the same number: the lock says that it is nobody's now.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            std::fs::remove_file(&temporary.0).and_then(|()| open())
        }
        other => other,
    };
    let written = file.and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary.0, path)?;
        File::open(directory)?.sync_all()
    });
    written.map_err(|source| failed("write", path, source))
}

/// Removes what was not renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> PkiError {
    PkiError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_mode_and_replace_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(read(&path).unwrap().is_none());
        write(&path, PRIVATE, b"one").unwrap();
        let content = read(&path).unwrap().unwrap();
        assert_eq!((&*content.bytes, content.shared), (&b"one"[..], false));
        // What a killed predecessor with this process's number left.
        let litter = dir.path().join(format!(".key.{}", std::process::id()));
        std::fs::write(&litter, "half").unwrap();
        write(&path, PUBLIC, b"two").unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o077, mode & 0o044);
        assert_eq!(read(&path).unwrap().unwrap().bytes, b"two");
        assert!(!litter.exists());
        assert!(write(&dir.path().join("no/key"), PRIVATE, b"").is_err());
    }

    #[test]
    fn a_link_is_replaced_and_what_it_points_to_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("key")).unwrap();
        write(&dir.path().join("key"), PRIVATE, b"new").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert_eq!(std::fs::read(dir.path().join("key")).unwrap(), b"new");
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let path = dir.path().to_owned();
        let (sender, receiver) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let _held = lock(&path).unwrap();
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err());
        drop(held);
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        other.join().unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).is_err());
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&pipe).is_err());
        std::fs::write(dir.path().join("long"), vec![b'x'; 300_000]).unwrap();
        assert!(read(&dir.path().join("long")).is_err());
    }
}

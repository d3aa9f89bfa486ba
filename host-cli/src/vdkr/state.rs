//! The directory in which a virtual machine keeps its disk, its logs and its socket.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::vm::{arch::Arch, kept};

/// File whose lock says who uses the directory's disk.
const LOCK: &str = "lock";
/// File that names the architecture of the directory's disk.
const ARCH: &str = "arch";
/// Longest name of one, in bytes.
const MAX_ARCH: u64 = 64;
/// How often a busy lock is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// A state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The name of an instance is no file name that is safe everywhere.
    #[error("{0:?} is not a name for an instance: use letters, digits, '.', '_' and '-'")]
    Name(String),
    /// There is no place for it.
    #[error("HOME is not set; name a state directory with --state-dir")]
    NoHome,
    /// The directory holds the state of another architecture.
    #[error("{} holds the state of an {found} machine; use another directory for {wanted}", dir.display())]
    Arch {
        /// The directory.
        dir: PathBuf,
        /// What it was made for.
        found: String,
        /// What was asked for.
        wanted: Arch,
    },
    /// Others may have put something there.
    #[error(
        "{} is no directory that this user alone can write to; remove it, or set HOME or \
         XDG_CACHE_HOME for another place",
        .0.display()
    )]
    NotPrivate(PathBuf),
    /// Something cannot be read or made.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another command did not let go of the directory in time.
    #[error(
        "{} is still in use by {holder} after {} s; wait until it has ended, keep one machine for \
         all commands (vdkr memres start), or use another instance (-I NAME) or --stateless",
        dir.display(), waited.as_secs()
    )]
    Busy {
        /// The directory.
        dir: PathBuf,
        /// Who holds it.
        holder: String,
        /// How long was waited.
        waited: Duration,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { path, source }
}

/// Name of the directory of an instance under the root of all states.
pub fn directory_name(arch: Arch, instance: Option<&str>) -> Result<String, StateError> {
    let Some(instance) = instance else {
        return Ok(arch.to_string());
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts_well = instance.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || instance.len() > 64 || !instance.chars().all(legal) {
        return Err(StateError::Name(instance.to_owned()));
    }
    Ok(format!("{arch}-{instance}"))
}

/// The architecture and the instance of a directory's name.
pub fn parse_directory_name(name: &str) -> Option<(Arch, Option<&str>)> {
    Arch::ALL
        .into_iter()
        .find_map(|arch| match name.strip_prefix(arch.name())? {
            "" => Some((arch, None)),
            rest => Some((arch, Some(rest.strip_prefix('-')?))),
        })
}

/// The architecture of the disk in a directory, where that is known.
pub fn architecture(dir: &Path) -> Option<Arch> {
    let mut text = String::new();
    let file = fs::File::open(dir.join(ARCH)).ok()?;
    file.take(MAX_ARCH).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Makes a directory of this user's alone where everybody may make some; one that is there already may
/// be somebody's trap.
pub fn private_directory(dir: &Path) -> Result<(), StateError> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error(dir)(error));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(dir).map_err(io_error(dir))?;
    let is_ours = found.uid() == nix::unistd::geteuid().as_raw();
    if found.is_dir() && is_ours && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(StateError::NotPrivate(dir.to_owned()))
}

/// Makes the directory when it is not there, and checks that its disk is of this architecture.
pub fn prepare(dir: &Path, arch: Arch) -> Result<(), StateError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error(dir))?;
    let marker = dir.join(ARCH);
    match fs::read_to_string(&marker) {
        Ok(found) if found.trim() == arch.name() => Ok(()),
        Ok(found) => Err(StateError::Arch {
            dir: dir.to_owned(),
            found: found
                .trim()
                .chars()
                .filter(|c| !c.is_control())
                .take(32)
                .collect(),
            wanted: arch,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Several commands may come here at once; all of them write the same.
            let unfinished = dir.join(format!("arch.{}", std::process::id()));
            fs::write(&unfinished, format!("{arch}\n"))
                .and_then(|()| fs::rename(&unfinished, &marker))
                .map_err(io_error(&marker))
        }
        Err(error) => Err(io_error(&marker)(error)),
    }
}

/// The right to use a directory's disk. Held for as long as the file is open, here or in a child.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// The locked file, for a child that shall hold the lock too.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// What to do about a lock that somebody else holds.
pub enum Wait {
    /// Try again in a moment.
    Go,
    /// Give up waiting: something else has turned up.
    Stop,
}

/// Takes the lock of a directory, waiting for at most `patience`. While it is busy `meanwhile`
/// is called again and again with the holder's name, and may end the waiting (`Ok(None)`).
pub async fn lock<F>(
    dir: &Path,
    purpose: &str,
    patience: Duration,
    mut meanwhile: F,
) -> Result<Option<Lock>, StateError>
where
    F: AsyncFnMut(&str) -> Wait,
{
    let path = dir.join(LOCK);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error(&path))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(io_error(&path)(error)),
        }
        let holder = holder(&mut file);
        if begun.elapsed() > patience {
            return Err(StateError::Busy {
                dir: dir.to_owned(),
                holder,
                waited: patience,
            });
        }
        if matches!(meanwhile(&holder).await, Wait::Stop) {
            return Ok(None);
        }
        tokio::time::sleep(PAUSE).await;
    }
    // Only for the words of those who wait; the lock itself is the kernel's.
    let note = format!("{purpose} (process {})\n", std::process::id());
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(note.as_bytes()));
    noted.map_err(io_error(&path))?;
    Ok(Some(Lock { file }))
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(200).read_to_string(&mut text));
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if read.is_err() || text.is_empty() {
        "another command".to_owned()
    } else {
        text
    }
}

/// Removes what a machine that was killed has left behind, unless somebody uses the directory: then it
/// may be of a machine that runs.
pub fn tidy(dir: &Path) -> io::Result<()> {
    if !kept::has_remains(dir) {
        return Ok(());
    }
    let lock = File::options().read(true).write(true).open(dir.join(LOCK));
    match lock {
        Ok(lock) if lock.try_lock().is_ok() => kept::clear(dir),
        _ => Ok(()),
    }
}

/// Who holds the lock of a directory; `None` when nobody does.
pub fn locked_by(dir: &Path) -> Option<String> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(dir.join(LOCK))
        .ok()?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Some(holder(&mut file)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_among_others_is_this_users_alone() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("vdkr");
        let mode = |mode| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        for _ in 0..2 {
            private_directory(&dir).unwrap();
            assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        }
        mode(0o755);
        private_directory(&dir).unwrap();
        for open in [0o777, 0o770, 0o1777] {
            mode(open);
            let error = private_directory(&dir).unwrap_err().to_string();
            assert!(error.contains("XDG_CACHE_HOME"), "{error}");
        }
        mode(0o700);
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        for other in [link, file] {
            let error = private_directory(&other).unwrap_err();
            assert!(matches!(error, StateError::NotPrivate(_)), "{error}");
        }
        assert!(private_directory(&place.path().join("no/vdkr")).is_err());
    }

    #[tokio::test]
    async fn what_a_killed_machine_left_goes_when_nobody_uses_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        tidy(dir).unwrap();
        let own = lock(dir, "vdkr memres", Duration::ZERO, async |_| Wait::Go);
        let own = own.await.unwrap().unwrap();
        let leave = || {
            drop(kept::bind(dir).unwrap());
            fs::write(dir.join(kept::DESCRIPTION), "{}").unwrap();
        };
        leave();
        tidy(dir).unwrap();
        assert!(dir.join(kept::SOCKET).exists() && dir.join(kept::DESCRIPTION).exists());
        drop(own);
        tidy(dir).unwrap();
        assert!(!kept::has_remains(dir));
        // Where nothing was ever locked, nothing is known.
        fs::remove_file(dir.join(LOCK)).unwrap();
        leave();
        tidy(dir).unwrap();
        assert!(kept::has_remains(dir));
    }

    #[test]
    fn names() {
        assert_eq!(directory_name(Arch::X86_64, None).unwrap(), "x86_64");
        assert_eq!(
            directory_name(Arch::Aarch64, Some("b2")).unwrap(),
            "aarch64-b2"
        );
        for bad in ["", "../x", "a/b", ".", "-x", "a b", "é", &"x".repeat(65)] {
            assert!(directory_name(Arch::X86_64, Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(parse_directory_name("x86_64"), Some((Arch::X86_64, None)));
        assert_eq!(
            parse_directory_name("aarch64-a-b"),
            Some((Arch::Aarch64, Some("a-b")))
        );
        assert_eq!(parse_directory_name("x86_64b"), None);
        assert_eq!(parse_directory_name("cache"), None);
    }

    #[test]
    fn a_directory_belongs_to_one_architecture() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        prepare(&dir, Arch::X86_64).unwrap();
        prepare(&dir, Arch::X86_64).unwrap();
        let error = prepare(&dir, Arch::Aarch64).unwrap_err().to_string();
        assert!(
            error.contains("x86_64") && error.contains("aarch64"),
            "{error}"
        );
        assert_eq!(
            fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    async fn take(
        dir: &Path,
        purpose: &str,
        patience: Duration,
    ) -> Result<Option<Lock>, StateError> {
        lock(dir, purpose, patience, async |_| Wait::Go).await
    }

    #[tokio::test]
    async fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(locked_by(dir.path()), None);
        let first = take(dir.path(), "vdkr run", Duration::ZERO)
            .await
            .unwrap()
            .unwrap();
        let me = std::process::id();
        assert_eq!(
            locked_by(dir.path()),
            Some(format!("vdkr run (process {me})"))
        );
        let error = take(dir.path(), "vdkr pull", Duration::ZERO)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("vdkr run (process"), "{error}");
        let stopped = lock(dir.path(), "x", Duration::from_mins(1), async |_| {
            Wait::Stop
        })
        .await;
        assert!(stopped.unwrap().is_none());

        // A copy, as a child has it, holds it on.
        let copy = first.file().try_clone().unwrap();
        drop(first);
        assert!(take(dir.path(), "x", Duration::ZERO).await.is_err());
        let mut copy = Some(copy);
        let second = lock(dir.path(), "second", Duration::from_mins(1), async |_| {
            copy.take();
            Wait::Go
        });
        assert!(second.await.unwrap().is_some());
    }
}

//! The running server of a storage directory: one locked pid file per port, inside the storage.
//!
//! The server holds an exclusive lock on `<storage>/run/registry-<port>.pid` for as long as it
//! lives, so a leftover file of a dead server, or a reused pid, is never mistaken for a live one.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use thiserror::Error;

/// Most that is read of a pid file, bytes.
const MAX_FILE: u64 = 16 * 1024;
/// What the kernel adds to the name of a program that was replaced or removed while it runs.
const DELETED: &[u8] = b" (deleted)";
/// Words of a command line among which a program's name is: an emulator or a loader may stand before it.
const FIRST_WORDS: usize = 4;

/// Files of one server.
#[derive(Debug, Clone)]
pub struct Instance {
    run_dir: PathBuf,
    port: u16,
}

/// Why the pid file could not be used.
#[derive(Debug, Error)]
pub enum InstanceError {
    /// Another server of this storage and port holds the lock.
    #[error("a registry already runs on port {port} with this storage (pid {pid})")]
    Running {
        /// Port.
        port: u16,
        /// Its process.
        pid: i32,
    },
    /// Somebody holds the lock who says nothing.
    #[error(
        "{path} is locked by another process (see: lsof {path}): a registry with this storage, or a \
         program of somebody who may read that file; end it, or let nobody else read it (chmod 600)"
    )]
    Locked {
        /// The pid file.
        path: PathBuf,
    },
    /// File system trouble.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl InstanceError {
    /// Whether the storage is on a file system that is mounted read-only.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem)
    }
}

/// The lock of a running server; dropping it, or dying, releases it.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    // The kernel releases it with the process.
    file: Flock<File>,
}

impl Lock {
    /// Tells those who ask how the server is spoken to, and what it was started with.
    pub fn announce(&mut self, announced: &Announced) -> Result<(), InstanceError> {
        let addresses: Vec<_> = announced
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        let text = format!(
            "{}\n{}\n{}\n",
            announced.mode,
            addresses.join(","),
            announced.settings.join(",")
        );
        // In one piece: who reads it meanwhile has all of it or nothing.
        unless_full(self.file.write_all(text.as_bytes())).map_err(|source| InstanceError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// What a server tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// How it is spoken to: one word.
    pub mode: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// Marks of the settings that take a restart, `name=mark`.
    pub settings: Vec<String>,
}

/// A server that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its process.
    pub pid: Pid,
    /// What it announced; `None` for one that has just been started.
    pub announced: Option<Announced>,
}

impl Live {
    /// The word of its mode.
    pub fn mode(&self) -> Option<&str> {
        Some(self.announced.as_ref()?.mode.as_str())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Emptied while still locked, so nobody can take what it says for a live server's. The file
        // itself stays: on a full disk there might be no room for another one.
        let _ = self.file.set_len(0);
    }
}

impl Instance {
    /// The files of the server of `storage` on `port`.
    pub fn new(storage: &Path, port: u16) -> Self {
        Self {
            run_dir: storage.join("run"),
            port,
        }
    }

    /// The file with the server's lock and what it tells.
    pub fn pid_file(&self) -> PathBuf {
        self.run_dir.join(format!("registry-{}.pid", self.port))
    }

    /// Where the background server's output goes.
    pub fn log_file(&self) -> PathBuf {
        self.run_dir.join(format!("registry-{}.log", self.port))
    }

    /// Waits until this process alone starts a server of this storage and port: until the file that
    /// is returned is closed. `None`: somebody else is at it for longer than that.
    pub async fn turn(&self, patience: Duration) -> Result<Option<Flock<File>>, InstanceError> {
        let path = self.run_dir.join(format!("registry-{}.start", self.port));
        let io = |source| InstanceError::Io {
            path: path.clone(),
            source,
        };
        let deadline = Instant::now() + patience;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(self.file_mode())
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(io)?;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(turn) => return Ok(Some(turn)),
                Err((file, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => file,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(io(errno.into())),
            };
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Creates the directory of these files, for those who may use the storage.
    pub fn prepare(&self) -> Result<(), InstanceError> {
        let made = match self.run_dir.parent() {
            Some(storage) => vdkr_registry::fs::make_root(storage),
            None => Ok(()),
        };
        let made = made.and_then(|()| {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(self.modes().0);
            builder.create(&self.run_dir)
        });
        made.map_err(|source| InstanceError::Io {
            path: self.run_dir.clone(),
            source,
        })
    }

    /// The modes of the directory and of its files. Whoever may read a file may lock it.
    fn modes(&self) -> (u32, u32) {
        let storage = self.run_dir.parent().map(std::fs::metadata);
        let mode = storage.and_then(Result::ok).map_or(0, |found| found.mode());
        vdkr_registry::fs::modes(mode)
    }

    /// The mode of files that are made here.
    pub fn file_mode(&self) -> u32 {
        self.modes().1
    }

    fn open(&self, create: bool) -> std::io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(create)
            .create(create)
            .mode(self.file_mode())
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(self.pid_file())
    }

    /// Takes the lock for this process and writes its pid.
    pub fn lock(&self) -> Result<Lock, InstanceError> {
        self.prepare()?;
        let path = self.pid_file();
        let io = |source| InstanceError::Io {
            path: path.clone(),
            source,
        };
        let mut patience = 10;
        loop {
            let file = self.open(true).map_err(io)?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                // `running` holds a shared lock for an instant; a server holds its own for good.
                Err((_, nix::errno::Errno::EWOULDBLOCK)) if patience > 0 => {
                    patience -= 1;
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
                Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                    return Err(match owner(&mut file) {
                        Some(live) if is_ours(live.pid) => InstanceError::Running {
                            port: self.port,
                            pid: live.pid.as_raw(),
                        },
                        _ => InstanceError::Locked { path },
                    });
                }
                Err((_, errno)) => return Err(io(errno.into())),
            };
            // The previous owner may have removed the name between our open and our lock.
            let ours = nix::sys::stat::fstat(&*file).map_err(|e| io(e.into()))?;
            if nix::sys::stat::stat(&path).is_ok_and(|named| named.st_ino == ours.st_ino) {
                file.set_len(0).map_err(io)?;
                file.rewind().map_err(io)?;
                unless_full(writeln!(file, "{}", std::process::id())).map_err(io)?;
                return Ok(Lock { path, file });
            }
        }
    }

    /// The live server's process, if there is one.
    pub fn running(&self) -> Result<Option<Pid>, InstanceError> {
        Ok(self.live()?.map(|live| live.pid))
    }

    /// The live server, if there is one.
    pub fn live(&self) -> Result<Option<Live>, InstanceError> {
        let file = match self.open(false) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(InstanceError::Io {
                    path: self.pid_file(),
                    source,
                });
            }
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => Ok(owner(&mut file)),
            Err((_, errno)) => Err(InstanceError::Io {
                path: self.pid_file(),
                source: errno.into(),
            }),
            Ok(_) => Ok(None),
        }
    }
}

/// Who holds the lock of a file: what the file says, unless the kernel tells that it is another process,
/// as when a server was killed and its words are left, or runs in a container.
fn owner(file: &mut File) -> Option<Live> {
    let told = read_live(file);
    match holder(file) {
        Some(holder) if told.as_ref().is_none_or(|told| told.pid != holder.pid) => Some(holder),
        _ => told,
    }
}

/// Whether a process runs this program, in whatever version.
pub fn is_ours(pid: Pid) -> bool {
    let Ok(own) = std::env::current_exe() else {
        return false;
    };
    let own = program(own.as_os_str());
    let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
    if exe.is_ok_and(|exe| program(exe.as_os_str()) == own) {
        return true;
    }
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0).take(FIRST_WORDS);
    words.any(|word| !own.is_empty() && program(OsStr::from_bytes(word)) == own)
}

/// The name of a program's file.
fn program(path: &OsStr) -> Vec<u8> {
    let name = Path::new(path).file_name().unwrap_or_default().as_bytes();
    name.strip_suffix(DELETED).unwrap_or(name).to_vec()
}

fn read_live(file: &mut File) -> Option<Live> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(MAX_FILE).read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok().filter(|pid| *pid > 1)?;
    let words = |line: Option<&str>| -> Vec<String> {
        let words = line.unwrap_or_default().split(',');
        words
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let mode = lines.next().map(str::to_owned);
    let addresses = words(lines.next());
    let settings = words(lines.next());
    Some(Live {
        pid: Pid::from_raw(pid),
        announced: mode.map(|mode| Announced {
            mode,
            addresses: addresses
                .iter()
                .filter_map(|address| address.parse().ok())
                .collect(),
            settings,
        }),
    })
}

/// On a full disk the lock alone has to do: what frees room there, and the server that is asked to,
/// must start.
fn unless_full(written: std::io::Result<()>) -> std::io::Result<()> {
    match written {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded
            ) =>
        {
            Ok(())
        }
        written => written,
    }
}

/// Who holds the lock of a file that does not say it, as the kernel tells.
fn holder(file: &File) -> Option<Live> {
    let held = file.metadata().ok()?;
    let id = format!(
        "{:02x}:{:02x}:{}",
        nix::sys::stat::major(held.dev()),
        nix::sys::stat::minor(held.dev()),
        held.ino()
    );
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| flock_of(line, &id))?;
    Some(Live {
        pid: Pid::from_raw(pid),
        announced: None,
    })
}

/// The process of a line such as `1: FLOCK  ADVISORY  WRITE 7184 00:1e:1234 0 EOF`, if it is about this
/// file.
fn flock_of(line: &str, id: &str) -> Option<i32> {
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    match words[..] {
        [_, "FLOCK", _, "WRITE", pid, of, ..] if of == id => {
            pid.parse().ok().filter(|pid| *pid > 1)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_without_a_word_tells_its_holder() {
        // As on a full disk.
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::new(dir.path(), 5000);
        let lock = instance.lock().unwrap();
        lock.file.set_len(0).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(instance.running().unwrap(), Some(Pid::from_raw(own)));
        assert!(matches!(instance.lock(), Err(InstanceError::Running { pid, .. }) if pid == own));
        drop(lock);
        assert_eq!(instance.running().unwrap(), None);
    }

    #[test]
    fn the_kernel_knows_better_than_words_that_were_left() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::new(dir.path(), 5000);
        let mut lock = instance.lock().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        // As after the end of a server that was killed, whose id another process has now.
        let mut other = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        lock.file.set_len(0).unwrap();
        lock.file.rewind().unwrap();
        writeln!(lock.file, "{}\nplain", other.id()).unwrap();
        let live = instance.live().unwrap().unwrap();
        assert_eq!((live.pid.as_raw(), live.announced), (own, None));
        let stranger = Pid::from_raw(i32::try_from(other.id()).unwrap());
        assert!(is_ours(live.pid) && !is_ours(stranger));
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!is_ours(stranger), "it is gone");
    }

    #[test]
    fn programs_by_their_names() {
        for (path, name) in [
            ("/usr/bin/container-registry", "container-registry"),
            (
                "/usr/bin/container-registry (deleted)",
                "container-registry",
            ),
            ("container-registry", "container-registry"),
            ("/usr/bin/sleep", "sleep"),
            ("/", ""),
        ] {
            assert_eq!(program(OsStr::new(path)), name.as_bytes(), "{path}");
        }
    }

    #[test]
    fn files_are_for_those_who_may_use_the_storage() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        for (name, root, directory, file) in [
            ("made", None, 0o700, 0o600),
            ("shared", Some(0o750), 0o750, 0o640),
        ] {
            let storage = dir.path().join(name);
            if let Some(root) = root {
                std::fs::create_dir(&storage).unwrap();
                std::fs::set_permissions(&storage, PermissionsExt::from_mode(root)).unwrap();
            }
            let instance = Instance::new(&storage, 5000);
            let _lock = instance.lock().unwrap();
            assert_eq!(mode(&storage), directory);
            assert_eq!(mode(&storage.join("run")), directory);
            assert_eq!(mode(&instance.pid_file()), file);
        }
    }

    #[test]
    fn lines_of_locks() {
        let line = "1: FLOCK  ADVISORY  WRITE 7184 00:1e:1234 0 EOF";
        assert_eq!(flock_of(line, "00:1e:1234"), Some(7184));
        for other in [
            "1: FLOCK  ADVISORY  READ 7184 00:1e:1234 0 EOF",
            "1: POSIX  ADVISORY  WRITE 7184 00:1e:1234 0 EOF",
            "1: -> FLOCK  ADVISORY  WRITE 7184 00:1e:1234 0 EOF",
            "1: FLOCK  ADVISORY  WRITE -1 00:1e:1234 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 7184 00:1e:12345 0 EOF",
            "",
        ] {
            assert_eq!(flock_of(other, "00:1e:1234"), None, "{other}");
        }
    }

    #[test]
    fn a_full_disk_takes_no_words() {
        use std::io::Error;
        assert!(unless_full(Err(Error::from_raw_os_error(nix::libc::ENOSPC))).is_ok());
        assert!(unless_full(Err(Error::from_raw_os_error(nix::libc::EDQUOT))).is_ok());
        assert!(unless_full(Err(Error::from_raw_os_error(nix::libc::EIO))).is_err());
    }

    #[test]
    fn lock_tells_live_from_stale() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::new(dir.path(), 5000);
        assert_eq!(instance.running().unwrap(), None);
        let mut lock = instance.lock().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(instance.running().unwrap(), Some(Pid::from_raw(own)));
        assert!(matches!(instance.lock(), Err(InstanceError::Running { pid, .. }) if pid == own));
        assert_eq!(instance.live().unwrap().unwrap().announced, None);
        let announced = Announced {
            mode: "tls".to_owned(),
            addresses: vec![
                "127.0.0.1:5000".parse().unwrap(),
                "[::1]:5000".parse().unwrap(),
            ],
            settings: vec!["cert_san=1".to_owned(), "username=2".to_owned()],
        };
        lock.announce(&announced).unwrap();
        let live = instance.live().unwrap().unwrap();
        assert_eq!((live.pid.as_raw(), live.mode()), (own, Some("tls")));
        assert_eq!(live.announced, Some(announced));
        assert_eq!(Instance::new(dir.path(), 5001).running().unwrap(), None);
        drop(lock);
        assert_eq!(instance.running().unwrap(), None);
        assert_eq!(std::fs::read(instance.pid_file()).unwrap(), b"");
        // A file without a lock, as a killed server leaves it.
        std::fs::write(instance.pid_file(), "1234\n").unwrap();
        assert_eq!(instance.running().unwrap(), None);
        instance.lock().unwrap();
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::new(dir.path(), 5000);
        instance.prepare().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, instance.pid_file()).unwrap();
        assert!(instance.lock().is_err());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    }
}

//! A machine that is kept running, as others find it in its state directory: a socket that speaks
//! the channel's protocol, and a description.

use std::{
    fs,
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{
    channel::Connection,
    pipe::{PipeError, greet_guest},
};

/// Name of the socket in a state directory.
pub const SOCKET: &str = "vdkr.sock";
/// Name of the description of a running monitor in a state directory.
pub const DESCRIPTION: &str = "monitor.json";
/// Longest description that is read, in bytes.
const MAX_DESCRIPTION: u64 = 64 * 1024;
/// How long the other side may take to greet.
pub(super) const GREETING: Duration = Duration::from_secs(10);

/// A running machine, as its monitor describes it for `memres status` and `list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Process id of the monitor.
    pub pid: u32,
    /// Process id of the emulator.
    pub qemu_pid: Option<u32>,
    /// Name and version of the monitor.
    pub software: String,
    /// Name and version of the agent.
    pub agent: String,
    /// Architecture of the guest.
    pub arch: String,
    /// What runs the guest.
    pub accel: String,
    /// The board.
    pub machine: String,
    /// The model of its processors, as the emulator calls it; empty when its monitor is too old to
    /// say.
    #[serde(default)]
    pub cpu: String,
    /// How many there are; 0 when its monitor is too old to say.
    #[serde(default)]
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The kernel that was booted.
    pub kernel: PathBuf,
    /// The initramfs that was booted.
    pub initrd: PathBuf,
    /// Whether it takes disks while it runs; unknown when its monitor is too old to say.
    #[serde(default)]
    pub hot_disks: Option<bool>,
    /// When the agent greeted, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Seconds without a request after which the machine stops; 0 for never.
    pub idle_timeout: u64,
}

impl Description {
    /// Reads the description in a state directory; `None` when there is none that can be read.
    pub fn read(state_dir: &Path) -> Option<Self> {
        let mut text = Vec::new();
        let file = fs::File::open(state_dir.join(DESCRIPTION)).ok()?;
        file.take(MAX_DESCRIPTION).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(super) fn write(&self, state_dir: &Path) -> io::Result<()> {
        let path = state_dir.join(DESCRIPTION);
        let unfinished = state_dir.join("monitor.json.unfinished");
        let written = fs::write(&unfinished, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(unfinished, &path));
        written.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot write {}: {error}", path.display()),
            )
        })
    }
}

/// Connects to the monitor of a state directory. `None` when none runs there.
pub async fn connect(state_dir: &Path) -> Result<Option<Connection>, PipeError> {
    let socket = match connect_socket(state_dir).await {
        Ok(Some(socket)) => socket,
        Ok(None) => return Ok(None),
        // As many as can wait are waiting for it.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(PipeError::Silent(state_dir.join(SOCKET)));
        }
        Err(error) => return Err(error.into()),
    };
    let (reader, mut writer) = socket.into_split();
    let greeting = greet_guest(reader, &mut writer, super::SOFTWARE);
    match timeout(GREETING, greeting).await {
        Ok(Ok((reader, hello))) => Ok(Some(Connection::new(reader, writer, hello))),
        // It went away while we came: the same as not being there.
        Ok(Err(PipeError::Closed)) => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(PipeError::Silent(state_dir.join(SOCKET))),
    }
}

/// The description that a machine left behind which was kept here and ended without being stopped.
/// `None` while one runs, and where the last one was stopped. `locked` says whether anybody holds
/// the directory's lock, which the monitor and the emulator both do to their end.
pub fn left_behind(state_dir: &Path, locked: bool) -> Option<Description> {
    Description::read(state_dir).filter(|_| !locked)
}

pub(super) async fn connect_socket(state_dir: &Path) -> io::Result<Option<UnixStream>> {
    let gone = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        )
    };
    let meta = match fs::symlink_metadata(state_dir.join(SOCKET)) {
        Ok(meta) => meta,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != me && me != 0 {
        let path = state_dir.join(SOCKET);
        let text = format!("{} belongs to another user", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let (_dir, path) = short_path(state_dir)?;
    match UnixStream::connect(path).await {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the socket; the caller holds the directory's lock, so one that lies there is stale.
pub fn bind(state_dir: &Path) -> io::Result<UnixListener> {
    remove(&state_dir.join(SOCKET))?;
    let (_dir, path) = short_path(state_dir)?;
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether a monitor is there, or has left something behind.
pub fn has_remains(state_dir: &Path) -> bool {
    let names = [SOCKET, DESCRIPTION].into_iter();
    let mut files = names.map(|name| fs::symlink_metadata(state_dir.join(name)));
    files.any(|file| file.is_ok())
}

/// Removes what a monitor that was killed left behind; the caller holds the directory's lock.
pub fn clear(state_dir: &Path) -> io::Result<()> {
    remove_socket(state_dir)?;
    remove(&state_dir.join(DESCRIPTION))
}

/// Removes the socket, so that nobody finds the machine any more.
pub(super) fn remove_socket(state_dir: &Path) -> io::Result<()> {
    remove(&state_dir.join(SOCKET))
}

/// A path of the socket that fits into a socket address however long the directory's is.
fn short_path(state_dir: &Path) -> io::Result<(fs::File, PathBuf)> {
    let dir = fs::File::options()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECTORY.bits())
        .open(state_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()));
    Ok((dir, path))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_nobody_and_is_replaced() {
        let deep = tempfile::tempdir().unwrap();
        // Longer than a socket address can be.
        let dir = deep.path().join("a-long-name-of-a-directory/".repeat(8));
        fs::create_dir_all(&dir).unwrap();
        assert!(connect(&dir).await.unwrap().is_none());
        drop(bind(&dir).unwrap());
        assert!(dir.join(SOCKET).exists());
        assert!(connect(&dir).await.unwrap().is_none());
        let _listener = bind(&dir).unwrap();
        let mode = fs::metadata(dir.join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

//! The serial console of a guest, kept in a file that cannot grow without end.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{io::AsyncReadExt as _, net::UnixStream, sync::watch};

/// Longest console file in bytes; then it becomes the previous one (`.1`) and a new one begins.
const MAX_FILE: u64 = 1024 * 1024;
/// Bytes kept in memory, to be shown when a boot fails.
const MAX_TAIL: usize = 8 * 1024;
/// Lines shown when a boot fails.
const SHOWN_LINES: usize = 25;

/// What the guest printed so far.
#[derive(Clone, Debug)]
pub struct Console {
    log: Arc<Mutex<Log>>,
    received: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Log {
    tail: VecDeque<u8>,
    file: Option<LogFile>,
}

#[derive(Debug)]
struct LogFile {
    file: File,
    path: PathBuf,
    length: u64,
}

impl Console {
    /// Copies everything from `socket` into `path`, which starts empty; without a path only the
    /// tail is kept. Ends by itself when the emulator closes its side.
    pub fn follow(socket: UnixStream, path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(LogFile::create).transpose()?;
        let log = Arc::new(Mutex::new(Log {
            tail: VecDeque::new(),
            file,
        }));
        let (sender, received) = watch::channel(0);
        tokio::spawn(copy(socket, Arc::clone(&log), sender));
        Ok(Self { log, received })
    }

    /// Waits for the first byte; `false` when the console was closed without one.
    pub async fn first_output(&self) -> bool {
        self.received
            .clone()
            .wait_for(|&bytes| bytes > 0)
            .await
            .is_ok()
    }

    /// Waits until nothing more can come.
    pub async fn closed(&self) {
        let mut received = self.received.clone();
        while received.changed().await.is_ok() {}
    }

    /// The last lines, made safe for a terminal.
    pub fn tail(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        last_lines(&log.tail.iter().copied().collect::<Vec<_>>())
    }
}

async fn copy(mut socket: UnixStream, log: Arc<Mutex<Log>>, received: watch::Sender<u64>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = socket.read(&mut buffer).await {
        let bytes = buffer.get(..length).unwrap_or_default();
        log.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(bytes);
        received.send_modify(|total| *total += length as u64);
    }
}

impl Log {
    fn add(&mut self, bytes: &[u8]) {
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(MAX_TAIL);
        self.tail.drain(..excess);
        // A log that cannot be written must not end the machine.
        if let Some(file) = &mut self.file
            && file.write(bytes).is_err()
        {
            self.file = None;
        }
    }
}

impl LogFile {
    fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            length: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length + bytes.len() as u64 > MAX_FILE {
            let mut previous = self.path.clone().into_os_string();
            previous.push(".1");
            std::fs::rename(&self.path, previous)?;
            *self = Self::create(&self.path)?;
        }
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// The last lines of a text from a guest, without anything that could drive a terminal.
pub(super) fn last_lines(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .filter(|&c| c == '\n' || c == '\t' || !c.is_control())
        .collect();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines
        .get(lines.len().saturating_sub(SHOWN_LINES)..)
        .unwrap_or_default()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn output_is_kept_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, "an earlier boot").unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let console = Console::follow(host, Some(&path)).unwrap();
        let line = [b'x'; 1023];
        for _ in 0..2100 {
            guest.write_all(&line).await.unwrap();
            guest.write_all(b"\n").await.unwrap();
        }
        guest.write_all(b"\x1b[31mlast words\r\n").await.unwrap();
        assert!(console.first_output().await);
        drop(guest);
        console.closed().await;
        assert!(
            console.tail().ends_with("\n[31mlast words"),
            "{}",
            console.tail()
        );
        assert!(console.tail().len() <= MAX_TAIL);
        let (current, previous) = (
            std::fs::read(&path).unwrap(),
            std::fs::read(dir.path().join("console.log.1")).unwrap(),
        );
        assert!(current.ends_with(b"last words\r\n"));
        assert!(current.len() as u64 <= MAX_FILE && previous.len() as u64 <= MAX_FILE);
    }

    #[tokio::test]
    async fn silence_is_noticed() {
        let (guest, host) = UnixStream::pair().unwrap();
        let console = Console::follow(host, None).unwrap();
        drop(guest);
        assert!(!console.first_output().await);
        assert_eq!(console.tail(), "");
    }
}

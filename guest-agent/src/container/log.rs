//! What a container has written: two files on the state disk, of bounded length.
//!
//! A record is a stream's number, a time, a length, and bytes as they came:
//!
//! ```text
//! stream: u8 (1 output, 2 errors)   time: u64 (nanoseconds since 1970)   length: u32   bytes
//! ```
//!
//! numbers little-endian. `log` grows until it is full, then it becomes `log.1`, whose content is
//! lost, and a new one begins. What a crash left unfinished at the end is cut off.

use std::{
    cell::{Cell, RefCell},
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::Notify;
use vdkr_core::channel::Pipe;

/// Bytes of a file before the next one begins.
const MAX_FILE: u64 = 8 << 20;
/// Bytes before the content of a record.
const HEADER: usize = 13;
/// Longest content of a record that is read.
const MAX_RECORD: u32 = 64 * 1024;
const FILE: &str = "log";
const FILE_OLD: &str = "log.1";

/// A container's log.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    max_file: u64,
    file: RefCell<Option<File>>,
    length: Cell<u64>,
    /// How often a new file was begun.
    generation: Cell<u64>,
    failed: Cell<bool>,
    /// Something was added, or the container ended.
    pub grown: Notify,
}

/// Bytes of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which stream.
    pub pipe: Pipe,
    /// When they came, in nanoseconds since 1970.
    pub time_ns: u64,
    /// What came.
    pub bytes: Vec<u8>,
}

impl Log {
    /// The log in a container's directory, new or from before.
    pub fn new(dir: &Path) -> Self {
        Self::with_limit(dir, MAX_FILE)
    }

    fn with_limit(dir: &Path, max_file: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            max_file,
            file: RefCell::default(),
            length: Cell::new(0),
            generation: Cell::new(1),
            failed: Cell::new(false),
            grown: Notify::new(),
        }
    }

    /// Adds bytes. A disk that is full costs the log, not the container.
    pub fn append(&self, pipe: Pipe, bytes: &[u8]) {
        for piece in bytes.chunks(MAX_RECORD as usize) {
            if let Err(error) = self.try_append(pipe, now_ns(), piece) {
                // The next one starts over, behind the last whole record.
                self.file.take();
                if !self.failed.replace(true) {
                    eprintln!("vdkr-agent: cannot write {}: {error}", self.dir.display());
                }
            }
        }
        self.grown.notify_waiters();
    }

    fn try_append(&self, pipe: Pipe, time_ns: u64, bytes: &[u8]) -> io::Result<()> {
        let mut slot = self.file.borrow_mut();
        if slot.is_none() {
            let (file, length) = open_at_end(&self.dir.join(FILE))?;
            self.length.set(length);
            *slot = Some(file);
        }
        if self.length.get() >= self.max_file {
            fs::rename(self.dir.join(FILE), self.dir.join(FILE_OLD))?;
            *slot = Some(File::create(self.dir.join(FILE))?);
            self.length.set(0);
            self.generation.set(self.generation.get() + 1);
        }
        let Some(file) = slot.as_mut() else {
            return Ok(());
        };
        let mut record = Vec::with_capacity(HEADER + bytes.len());
        record.push(if pipe == Pipe::Stderr { 2 } else { 1 });
        record.extend(time_ns.to_le_bytes());
        record.extend(u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
        record.extend(bytes);
        file.write_all(&record)?;
        self.length.set(self.length.get() + record.len() as u64);
        Ok(())
    }

    /// Lets go of the file, until something is added.
    pub fn close(&self) {
        self.file.take();
        self.grown.notify_waiters();
    }

    /// Reads from the beginning of what is kept.
    pub fn read(&self) -> Cursor<'_> {
        let current = self.generation.get();
        Cursor {
            log: self,
            generation: current.saturating_sub(1),
            lost: false,
            file: File::open(self.dir.join(FILE_OLD)).ok().map(BufReader::new),
            offset: 0,
        }
    }
}

/// A place in a log.
#[derive(Debug)]
pub struct Cursor<'a> {
    log: &'a Log,
    generation: u64,
    lost: bool,
    file: Option<BufReader<File>>,
    offset: u64,
}

impl Cursor<'_> {
    /// Whether records were overtaken, and are missing before the one that was read last.
    pub fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// The next record; `None` when there is none yet.
    pub fn next_entry(&mut self) -> Option<Entry> {
        loop {
            if let Some(file) = &mut self.file {
                if let Ok(Some(entry)) = read_entry(file) {
                    self.offset += (HEADER + entry.bytes.len()) as u64;
                    return Some(entry);
                }
                // Back to the start of what is not whole yet.
                file.seek(SeekFrom::Start(self.offset)).ok()?;
            }
            let current = self.log.generation.get();
            if self.generation >= current {
                if self.file.is_none() {
                    let file = File::open(self.log.dir.join(FILE)).ok()?;
                    self.file = Some(BufReader::new(file));
                    continue;
                }
                return None;
            }
            // The file is complete; one that was overtaken meanwhile is lost.
            let next = self.generation + 1;
            self.generation = next.max(current - 1);
            self.lost |= self.generation > next;
            let name = if self.generation == current {
                FILE
            } else {
                FILE_OLD
            };
            self.file = File::open(self.log.dir.join(name)).ok().map(BufReader::new);
            self.offset = 0;
        }
    }
}

/// One record; `None` at the end, or where the rest is not there.
fn read_entry(file: &mut impl Read) -> io::Result<Option<Entry>> {
    let mut header = [0; HEADER];
    match file.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let Some((pipe, time_ns, length)) = parse_header(&header) else {
        return Ok(None);
    };
    let mut bytes = vec![0; length as usize];
    match file.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other.map(|()| {
            Some(Entry {
                pipe,
                time_ns,
                bytes,
            })
        }),
    }
}

/// `None` when it is none.
fn parse_header(header: &[u8; HEADER]) -> Option<(Pipe, u64, u32)> {
    let (stream, rest) = header.split_first()?;
    let (time, length) = rest.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes(*length.first_chunk::<4>()?);
    let pipe = match stream {
        1 => Pipe::Stdout,
        2 => Pipe::Stderr,
        _ => return None,
    };
    (length <= MAX_RECORD).then_some((pipe, u64::from_le_bytes(*time), length))
}

/// Opens a log behind its last whole record, and cuts off what follows.
fn open_at_end(path: &Path) -> io::Result<(File, u64)> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let end = file.metadata()?.len();
    let mut whole = 0;
    let mut reader = BufReader::new(&mut file);
    let mut header = [0; HEADER];
    while reader.read_exact(&mut header).is_ok() {
        let Some((_, _, length)) = parse_header(&header) else {
            break;
        };
        let next = whole + HEADER as u64 + u64::from(length);
        if next > end {
            break;
        }
        whole = next;
        reader.seek_relative(i64::from(length))?;
    }
    drop(reader);
    file.set_len(whole)?;
    file.seek(SeekFrom::Start(whole))?;
    Ok((file, whole))
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(log: &Log) -> Vec<(Pipe, Vec<u8>)> {
        let mut cursor = log.read();
        std::iter::from_fn(|| cursor.next_entry())
            .map(|entry| (entry.pipe, entry.bytes))
            .collect()
    }

    #[test]
    fn streams_and_order_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path());
        assert!(all(&log).is_empty());
        log.append(Pipe::Stdout, b"one\n");
        log.append(Pipe::Stderr, &[0, 255]);
        let expected = [
            (Pipe::Stdout, b"one\n".to_vec()),
            (Pipe::Stderr, vec![0, 255]),
        ];
        assert_eq!(all(&log), expected);
        // As after a restart of the machine.
        let log = Log::new(dir.path());
        assert_eq!(all(&log), expected);
        log.append(Pipe::Stdout, b"more");
        assert_eq!(all(&log).len(), 3);
    }

    #[test]
    fn it_is_bounded_and_keeps_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::with_limit(dir.path(), 1000);
        for number in 0..1000 {
            log.append(Pipe::Stdout, format!("{number:04}").as_bytes());
        }
        let size: u64 = [FILE, FILE_OLD]
            .iter()
            .map(|name| fs::metadata(dir.path().join(name)).unwrap().len())
            .sum();
        assert!(size <= 2100, "{size}");
        let kept = all(&log);
        assert!(kept.len() >= 1000 / 17);
        for (index, (_, bytes)) in kept.iter().enumerate() {
            assert_eq!(
                bytes,
                format!("{:04}", 1000 - kept.len() + index).as_bytes()
            );
        }
    }

    #[test]
    fn a_reader_follows_through_new_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::with_limit(dir.path(), 100);
        let mut cursor = log.read();
        let mut read = Vec::new();
        for number in 0..200_u8 {
            log.append(Pipe::Stdout, &[number]);
            while let Some(entry) = cursor.next_entry() {
                read.extend(entry.bytes);
            }
        }
        assert_eq!(read, (0..200).collect::<Vec<u8>>());
        assert!(!cursor.take_lost());
        // One that was overtaken knows it, once.
        for number in 0..200_u8 {
            log.append(Pipe::Stdout, &[number]);
        }
        let late: Vec<u8> = std::iter::from_fn(|| cursor.next_entry())
            .flat_map(|entry| entry.bytes)
            .collect();
        assert!(late.len() < 200 && late.last() == Some(&199), "{late:?}");
        assert!(cursor.take_lost() && !cursor.take_lost());
    }

    #[test]
    fn what_a_crash_left_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path());
        log.append(Pipe::Stdout, b"whole");
        log.append(Pipe::Stdout, b"torn");
        let path = dir.path().join(FILE);
        let bytes = fs::read(&path).unwrap();
        for length in HEADER + 5..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let log = Log::new(dir.path());
            assert_eq!(all(&log).len(), 1, "{length}");
            log.append(Pipe::Stderr, b"after");
            assert_eq!(all(&log)[1], (Pipe::Stderr, b"after".to_vec()));
        }
    }

    proptest! {
        #[test]
        fn any_file_is_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), &bytes).unwrap();
            let log = Log::new(dir.path());
            prop_assert!(all(&log).len() <= bytes.len() / HEADER);
            log.append(Pipe::Stdout, b"x");
            prop_assert_eq!(all(&log).pop(), Some((Pipe::Stdout, b"x".to_vec())));
        }
    }
}

//! Archives as plain files: compressed ones are inflated into a temporary file without a name.

use std::fs::File;
use std::io::{BufReader, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::TransferError;
use crate::layer::Limits;

/// Largest archive once it is inflated, bytes.
const MAX_PLAIN: u64 = 256 << 30;
/// What stays free at least where it is put, bytes.
const RESERVE: u64 = 64 << 20;
/// And at most.
const MOST_RESERVED: u64 = 1 << 30;
/// And which part of the file system does, between those: others write there too.
const RESERVED_PART: u64 = 10;
/// Largest window of a zstd frame (log2 of bytes): what `zstd --ultra` makes, 128 MiB.
const ZSTD_WINDOW: u32 = 27;
const PIECE: usize = 256 * 1024;

/// How a file is compressed, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compressed {
    No,
    Gzip,
    Zstd,
}

impl Compressed {
    pub(crate) fn of(first: &[u8]) -> Self {
        if first.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd
        } else {
            Self::No
        }
    }

    /// Undoes it.
    pub(crate) fn reader<'a>(self, source: impl Read + 'a) -> std::io::Result<Box<dyn Read + 'a>> {
        let source = BufReader::with_capacity(PIECE, source);
        Ok(match self {
            Self::No => Box::new(source),
            Self::Gzip => Box::new(MultiGzDecoder::new(source)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Box::new(decoder)
            }
        })
    }
}

/// Compressions that archives of images are met in and that are not undone here.
fn unsupported(first: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 3] = [
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ];
    let found = known.iter().find(|(magic, _)| first.starts_with(magic));
    found.map(|(_, kind)| *kind)
}

/// Opens a regular file, inflated when it is compressed.
pub(crate) fn open_plain(path: &Path) -> Result<File, TransferError> {
    let failed = |action, error| TransferError::io(action, path, error);
    // Without NONBLOCK, opening a pipe would wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file: File = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| failed("open", error.into()))?
        .into();
    let metadata = file.metadata().map_err(|error| failed("read", error))?;
    if !metadata.is_file() {
        return Err(TransferError::archive(path, "it is not a regular file"));
    }
    let mut first = [0; 6];
    let length = file
        .read_at(&mut first, 0)
        .map_err(|error| failed("read", error))?;
    if let Some(kind) = unsupported(&first[..length]) {
        let reason =
            format!("{kind} is not supported; compress it with gzip or zstd, or not at all");
        return Err(TransferError::archive(path, reason));
    }
    match Compressed::of(&first[..length]) {
        Compressed::No => Ok(file),
        compressed => {
            let place = place(path);
            let out = unnamed(&place)?;
            let room = rustix::fs::fstatvfs(&out).map_or(u64::MAX, |stat| {
                let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
                room(bytes(stat.f_bavail), bytes(stat.f_blocks))
            });
            let spool = Spool { out, place, room };
            inflate(&file, compressed, metadata.len(), path, spool)
        }
    }
}

/// Where an archive is put.
struct Spool {
    out: File,
    place: PathBuf,
    /// Bytes that it may take there.
    room: u64,
}

/// What an archive may take of a file system with so many bytes free, and so many altogether.
fn room(free: u64, whole: u64) -> u64 {
    let reserve = (whole / RESERVED_PART).clamp(RESERVE, MOST_RESERVED);
    // Most of what is left of a disk that is nearly full, too.
    let reserve = reserve.min((free / 4).max(RESERVE));
    free.saturating_sub(reserve).min(MAX_PLAIN)
}

fn inflate(
    file: &File,
    compressed: Compressed,
    length: u64,
    path: &Path,
    spool: Spool,
) -> Result<File, TransferError> {
    let damaged = |error: std::io::Error| {
        TransferError::archive(path, format!("it cannot be inflated: {error}"))
    };
    let Spool {
        mut out,
        place,
        room,
    } = spool;
    // What no layer may do, no archive of layers does.
    let limits = Limits::default();
    let bomb = length.saturating_mul(limits.ratio).max(limits.ratio_after);
    let mut reader = compressed.reader(file).map_err(damaged)?;
    let mut buffer = vec![0; PIECE];
    let mut written = 0u64;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(out),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(damaged(error)),
        };
        written += count as u64;
        if written > bomb {
            let reason =
                format!("it is a decompression bomb: {length} bytes of it become more than {bomb}");
            return Err(TransferError::archive(path, reason));
        }
        if written > room {
            let reason = format!(
                "inflated it has more than the {room} bytes that it may take in {}, where some room stays free for others; make room there, or set TMPDIR to a directory with more",
                place.display()
            );
            return Err(TransferError::archive(path, reason));
        }
        out.write_all(&buffer[..count])
            .map_err(|error| TransferError::io("write a temporary file in", &place, error))?;
    }
}

/// `TMPDIR`, else beside the archive when that can be written to, else the system's directory.
fn place(path: &Path) -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
    if let Some(dir) = named {
        return dir.into();
    }
    let beside = match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
        None => Path::new("/"),
    };
    if rustix::fs::access(beside, rustix::fs::Access::WRITE_OK).is_ok() {
        return beside.to_owned();
    }
    std::env::temp_dir()
}

/// A file that is gone when it is closed, readable for nobody else.
pub(crate) fn unnamed(dir: &Path) -> Result<File, TransferError> {
    let failed = |error: Errno| TransferError::io("create a temporary file in", dir, error.into());
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok(file.into()),
        // File systems without it, and kernels that take the flag for a directory's.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(error) => return Err(failed(error)),
    }
    let mut number = 0;
    loop {
        let path = dir.join(format!(".vdkr-spool-{}-{number}", std::process::id()));
        match rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode) {
            Ok(file) => {
                rustix::fs::unlink(&path).map_err(failed)?;
                return Ok(file.into());
            }
            Err(Errno::EXIST) if number < 1000 => number += 1,
            Err(error) => return Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_without_end_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.tar.zst");
        // zstd makes a few hundred bytes of this.
        let mut encoder =
            zstd::stream::write::Encoder::new(File::create(&path).unwrap(), 1).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..300 {
            encoder.write_all(&zeros).unwrap();
        }
        encoder.finish().unwrap();
        let error = open_plain(&path).unwrap_err().to_string();
        assert!(error.contains("become more than"), "{error}");
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn an_archive_may_be_as_dense_as_a_layer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zeros.tar.gz");
        let best = flate2::Compression::best();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), best);
        encoder.write_all(&vec![0; 64 << 20]).unwrap();
        let zeros = encoder.finish().unwrap();
        std::fs::write(&path, zeros.repeat(3)).unwrap();
        let plain = open_plain(&path).unwrap();
        assert_eq!(plain.metadata().unwrap().len(), 192 << 20);
        std::fs::write(&path, zeros.repeat(6)).unwrap();
        let error = open_plain(&path).unwrap_err().to_string();
        assert!(error.contains("decompression bomb"), "{error}");
    }

    #[test]
    fn some_room_stays_free() {
        assert_eq!(room(50 << 30, 100 << 30), 49 << 30);
        assert_eq!(room(1 << 30, 100 << 30), 768 << 20);
        assert_eq!(room(64 << 20, 100 << 30), 0);
        assert_eq!(room(4 << 30, 5 << 30), (4 << 30) - (512 << 20));
        assert_eq!(room(100 << 20, 200 << 20), 36 << 20);
        assert_eq!(room(900 << 30, 1000 << 30), MAX_PLAIN);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.tar.zst");
        std::fs::write(
            &path,
            zstd::stream::encode_all(&[7; 10_000][..], 1).unwrap(),
        )
        .unwrap();
        let spool = Spool {
            out: unnamed(dir.path()).unwrap(),
            place: "/some/place".into(),
            room: 9999,
        };
        let file = File::open(&path).unwrap();
        let error = inflate(&file, Compressed::Zstd, 100, &path, spool).unwrap_err();
        let words = "more than the 9999 bytes that it may take in /some/place";
        let error = error.to_string();
        assert!(
            error.contains(words) && error.contains("set TMPDIR"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open_plain(dir.path()).is_err());
        assert!(open_plain(&dir.path().join("none")).is_err());
        let cut = dir.path().join("cut.tar.gz");
        std::fs::write(&cut, [0x1f, 0x8b, 8, 0, 0]).unwrap();
        let error = open_plain(&cut).unwrap_err().to_string();
        assert!(error.contains("cannot be inflated"), "{error}");
    }
}

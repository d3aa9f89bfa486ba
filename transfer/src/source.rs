//! Content that is to be sent: where it comes from, piece by piece, as often as needed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::error::TransferError;
use crate::upload::local::WholeFile;

/// Size of the pieces in which files are read, bytes. Large enough to make system calls cheap, small
/// enough to be hashed while it is still in the processor's cache.
pub(crate) const CHUNK: usize = 512 * 1024;

/// Content that can be opened again, at any offset, when a transfer has to go on after a failure.
pub trait BlobSource: Send + Sync + 'static {
    /// Opens the content `offset` bytes from its start. Called on a thread that may block.
    fn open(&self, offset: u64) -> Result<Box<dyn ChunkReader>, TransferError>;

    /// The file that is this content and nothing else, when there is one. Called on a thread that may
    /// block.
    fn whole_file(&self) -> Option<WholeFile> {
        None
    }
}

/// The pieces of one pass over some content. Every call may block.
pub trait ChunkReader: Send + Sync {
    /// The next piece, never empty; `None` at the end.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, TransferError>;
}

impl BlobSource for Bytes {
    fn open(&self, offset: u64) -> Result<Box<dyn ChunkReader>, TransferError> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        Ok(Box::new(Rest(self.slice(start..))))
    }
}

struct Rest(Bytes);

impl ChunkReader for Rest {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, TransferError> {
        let piece = self.0.split_to(self.0.len().min(CHUNK));
        Ok((!piece.is_empty()).then_some(piece))
    }
}

/// An open file, or a part of one. Positions belong to each pass, so passes do not disturb each other.
#[derive(Clone, Debug)]
pub struct FileSource {
    file: Arc<File>,
    path: Arc<PathBuf>,
    /// Where the content begins and, for a part of a file, ends; bytes from the file's start.
    start: u64,
    end: Option<u64>,
}

impl FileSource {
    /// Reads from `file`; `path` names it in errors.
    pub fn new(file: File, path: impl Into<PathBuf>) -> Self {
        Self {
            file: Arc::new(file),
            path: Arc::new(path.into()),
            start: 0,
            end: None,
        }
    }

    /// A part of this file: `size` bytes from `start`, both counted in the file itself.
    #[must_use]
    pub fn part(&self, start: u64, size: u64) -> Self {
        Self {
            start,
            end: Some(start.saturating_add(size)),
            ..self.clone()
        }
    }

    /// The path that errors name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file at `path`.
    pub fn open_path(path: impl Into<PathBuf>) -> Result<Self, TransferError> {
        let path = path.into();
        match File::open(&path) {
            Ok(file) => Ok(Self::new(file, path)),
            Err(error) => Err(TransferError::io("open", &path, error)),
        }
    }
}

impl BlobSource for FileSource {
    fn open(&self, offset: u64) -> Result<Box<dyn ChunkReader>, TransferError> {
        Ok(Box::new(FilePass {
            source: self.clone(),
            offset: self.start.saturating_add(offset),
            buffers: Buffers::default(),
        }))
    }

    fn whole_file(&self) -> Option<WholeFile> {
        let metadata = self.file.metadata().ok()?;
        let end = self.end.unwrap_or(metadata.len());
        let size = end.checked_sub(self.start)?;
        (metadata.is_file() && end <= metadata.len()).then(|| WholeFile {
            file: self.file.clone(),
            start: self.start,
            size,
        })
    }
}

struct FilePass {
    source: FileSource,
    offset: u64,
    buffers: Buffers,
}

impl ChunkReader for FilePass {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, TransferError> {
        let left = self.source.end.map(|end| end.saturating_sub(self.offset));
        let wanted = left.map_or(CHUNK, |left| left.min(CHUNK as u64) as usize);
        if wanted == 0 {
            return Ok(None);
        }
        let mut buffer = self.buffers.take();
        loop {
            let space = &mut buffer.bytes[..wanted];
            match self.source.file.read_at(space, self.offset) {
                Ok(0) => return Ok(None),
                Ok(count) => {
                    self.offset += count as u64;
                    buffer.length = count;
                    return Ok(Some(Bytes::from_owner(buffer)));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TransferError::io("read", &self.source.path, error)),
            }
        }
    }
}

/// Content at rest, of known size.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// At hand.
    Bytes(Bytes),
    /// A part of a file, and its size in bytes.
    Part(FileSource, u64),
}

impl Content {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Part(_, size) => *size,
        }
    }

    /// All of it, when it is at most `limit` bytes.
    pub(crate) fn read(&self, what: &str, limit: u64) -> Result<Bytes, TransferError> {
        if self.size() > limit {
            return Err(TransferError::TooLarge {
                what: what.to_owned(),
                limit,
            });
        }
        if let Self::Bytes(bytes) = self {
            return Ok(bytes.clone());
        }
        let mut reader = self.open(0)?;
        let mut all = Vec::with_capacity(self.size() as usize);
        while let Some(piece) = reader.next_chunk()? {
            all.extend_from_slice(&piece);
        }
        if all.len() as u64 != self.size() {
            return Err(TransferError::SizeMismatch {
                what: what.to_owned(),
                expected: self.size(),
                got: all.len() as u64,
            });
        }
        Ok(all.into())
    }
}

impl BlobSource for Content {
    fn open(&self, offset: u64) -> Result<Box<dyn ChunkReader>, TransferError> {
        match self {
            Self::Bytes(bytes) => bytes.open(offset),
            Self::Part(file, _) => file.open(offset),
        }
    }

    fn whole_file(&self) -> Option<WholeFile> {
        match self {
            Self::Bytes(_) => None,
            Self::Part(file, _) => file.whole_file(),
        }
    }
}

/// The pieces of a pass as a stream of bytes.
pub struct ChunkStream {
    reader: Box<dyn ChunkReader>,
    rest: Bytes,
}

impl ChunkStream {
    /// Reads what `reader` gives.
    pub fn new(reader: Box<dyn ChunkReader>) -> Self {
        Self {
            reader,
            rest: Bytes::new(),
        }
    }
}

impl std::io::Read for ChunkStream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.rest.is_empty() {
            self.rest = self.reader.next_chunk()?.unwrap_or_default();
        }
        let length = self.rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

/// Buffers that come back when the last piece of them has been sent: memory is mapped and zeroed
/// once for each pass, not once for each piece.
#[derive(Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    fn take(&self) -> Buffer {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer {
            bytes: spare.unwrap_or_else(|| vec![0; CHUNK]),
            length: 0,
            home: self.clone(),
        }
    }
}

struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Buffers,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut home = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        home.push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collect(source: &dyn BlobSource, offset: u64) -> Vec<u8> {
        let mut reader = source.open(offset).unwrap();
        let mut all = Vec::new();
        while let Some(piece) = reader.next_chunk().unwrap() {
            assert!(!piece.is_empty());
            all.extend_from_slice(&piece);
        }
        all
    }

    #[test]
    fn buffers_are_used_again() {
        let buffers = Buffers::default();
        let first = buffers.take();
        let at = first.bytes.as_ptr();
        drop(Bytes::from_owner(first));
        assert_eq!(buffers.take().bytes.as_ptr(), at);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = FileSource::open_path("/no/such/file").unwrap_err();
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_pass_gives_everything_from_its_offset(size in 0usize..2 * CHUNK + 9, offset in 0usize..3 * CHUNK) {
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let expected = &content[offset.min(size)..];
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &content).unwrap();
            let source = FileSource::open_path(file.path()).unwrap();
            prop_assert_eq!(collect(&source, offset as u64), expected);
            prop_assert_eq!(collect(&Bytes::from(content.clone()), offset as u64), expected);
            // A part of a file is content of its own.
            let part = source.part((size / 3) as u64, (size / 2) as u64);
            let expected = &content[size / 3..size / 3 + size / 2];
            prop_assert_eq!(collect(&part, offset as u64), &expected[offset.min(expected.len())..]);
        }
    }
}

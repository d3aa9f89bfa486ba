//! Content that is to be sent: where it comes from, piece by piece, as often as needed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::error::TransferError;

/// Size of the pieces in which files are read, bytes. Large enough to make system calls cheap, small
/// enough to be hashed while it is still in the processor's cache.
pub(crate) const CHUNK: usize = 512 * 1024;

/// Content that can be opened again, at any offset, when a transfer has to go on after a failure.
pub trait BlobSource: Send + Sync + 'static {
    /// Opens the content `offset` bytes from its start. Called on a thread that may block.
    fn open(&self, offset: u64) -> Result<Box<dyn ChunkReader>, TransferError>;
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

/// An open file. Positions belong to each pass, so passes do not disturb each other.
#[derive(Clone, Debug)]
pub struct FileSource {
    file: Arc<File>,
    path: Arc<PathBuf>,
}

impl FileSource {
    /// Reads from `file`; `path` names it in errors.
    pub fn new(file: File, path: impl Into<PathBuf>) -> Self {
        Self {
            file: Arc::new(file),
            path: Arc::new(path.into()),
        }
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
            offset,
            buffers: Buffers::default(),
        }))
    }
}

struct FilePass {
    source: FileSource,
    offset: u64,
    buffers: Buffers,
}

impl ChunkReader for FilePass {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, TransferError> {
        let mut buffer = self.buffers.take();
        loop {
            match self.source.file.read_at(&mut buffer.bytes, self.offset) {
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
        }
    }
}

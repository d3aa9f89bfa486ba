//! What answers carry.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::task::JoinHandle;

use crate::fs::File;

/// Bytes of a blob that are moved at once.
const PIECE: usize = 256 << 10;
/// The same when there is no large buffer left.
const SMALL_PIECE: usize = 64 << 10;
/// Large buffers for answers, in all. They are kept: an allocator that has handed out many at a time
/// seldom gives their memory back to the system.
const LARGE: usize = 32;
/// How many blobs may be received in large pieces at a time.
const MANY: usize = 32;

/// The body of an answer.
#[derive(Debug, Default)]
pub struct Body(Inner);

#[derive(Debug, Default)]
enum Inner {
    #[default]
    Empty,
    Full(Bytes),
    File(Box<FileBody>),
}

impl Body {
    /// Part of a file: `len` bytes from `offset` on.
    pub(crate) fn file(part: FilePart, buffers: &Arc<Buffers>) -> Self {
        let FilePart { file, offset, len } = part;
        let buffers = Arc::clone(buffers);
        Self(Inner::File(Box::new(FileBody {
            file,
            at: offset,
            left: len,
            next: None,
            buffers,
        })))
    }

    fn len(&self) -> u64 {
        match &self.0 {
            Inner::Empty => 0,
            Inner::Full(bytes) => bytes.len() as u64,
            Inner::File(file) => file.left,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Self::default()
        } else {
            Self(Inner::Full(bytes))
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::File(file) => file.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len())
    }
}

/// What is to be sent of a file.
#[derive(Debug)]
pub(crate) struct FilePart {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// A file on its way: one piece at the client, the next one being read.
#[derive(Debug)]
struct FileBody {
    file: Arc<File>,
    /// Where the next piece begins.
    at: u64,
    /// Bytes not handed out yet.
    left: u64,
    next: Option<JoinHandle<std::io::Result<Bytes>>>,
    buffers: Arc<Buffers>,
}

impl FileBody {
    fn read_ahead(&mut self) {
        if self.left == 0 {
            return;
        }
        let (file, at, left) = (Arc::clone(&self.file), self.at, self.left);
        let buffers = Arc::clone(&self.buffers);
        self.next = Some(tokio::task::spawn_blocking(move || {
            let mut buffer = buffers.take(left);
            file.read_exact_at(&mut buffer.bytes, at)
                .map_err(std::io::Error::other)?;
            Ok(Bytes::from_owner(buffer))
        }));
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        if self.next.is_none() {
            self.read_ahead();
        }
        let Some(next) = &mut self.next else {
            return Poll::Ready(None);
        };
        let piece = ready!(Pin::new(next).poll(context)).unwrap_or_else(|error| {
            Err(std::io::Error::other(format!(
                "reading was interrupted: {error}"
            )))
        });
        self.next = None;
        match piece {
            Ok(piece) => {
                self.at += piece.len() as u64;
                self.left -= piece.len() as u64;
                self.read_ahead();
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Err(error) => {
                // The client sees a connection that ends before the length announced.
                tracing::error!(%error, "a blob could not be sent to its end");
                self.left = 0;
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

impl Drop for FileBody {
    fn drop(&mut self) {
        if let Some(next) = &self.next {
            next.abort();
        }
    }
}

/// Buffers for blobs on their way out, and the count of those on their way in.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    large: Mutex<Large>,
    uploads: AtomicUsize,
}

#[derive(Debug, Default)]
struct Large {
    idle: Vec<Vec<u8>>,
    made: usize,
}

impl Buffers {
    /// Counts one more upload, as long as the result lives.
    pub(crate) fn begin_upload(self: &Arc<Self>) -> Upload {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        Upload(Arc::clone(self))
    }

    /// A buffer for at most `wanted` bytes.
    fn take(self: &Arc<Self>, wanted: u64) -> Buffer {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        if wanted > SMALL_PIECE {
            let mut large = self.large();
            if let Some(idle) = large.idle.pop() {
                bytes = idle;
            } else if large.made < LARGE {
                large.made += 1;
                bytes.reserve_exact(PIECE);
            }
        }
        let home = (bytes.capacity() >= PIECE).then(|| Arc::clone(self));
        let room = if home.is_some() { PIECE } else { SMALL_PIECE };
        bytes.resize(wanted.min(room), 0);
        Buffer { bytes, home }
    }

    fn large(&self) -> MutexGuard<'_, Large> {
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One blob on its way in.
#[derive(Debug)]
pub(crate) struct Upload(Arc<Buffers>);

impl Upload {
    /// How many bytes to hash and write at once.
    pub(crate) fn piece(&self) -> usize {
        let many = self.0.uploads.load(Ordering::Relaxed) > MANY;
        if many { SMALL_PIECE } else { PIECE }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.uploads.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    /// Where a large one goes back to.
    home: Option<Arc<Buffers>>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.large().idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_few_and_come_back() {
        let buffers = Arc::new(Buffers::default());
        let taken: Vec<_> = (0..100).map(|_| buffers.take(10 << 20)).collect();
        assert_eq!(
            taken.iter().filter(|b| b.bytes.len() == PIECE).count(),
            LARGE
        );
        assert!(taken[LARGE..].iter().all(|b| b.bytes.len() == SMALL_PIECE));
        drop(taken);
        assert_eq!(buffers.large().idle.len(), LARGE);
        assert_eq!(buffers.take(100_000).bytes.len(), 100_000);
        assert_eq!(buffers.take(10).bytes.len(), 10);
        let large = buffers.large();
        assert_eq!((large.idle.len(), large.made), (LARGE, LARGE));
    }

    #[test]
    fn many_uploads_take_smaller_pieces() {
        let buffers = Arc::new(Buffers::default());
        let one = buffers.begin_upload();
        let others: Vec<_> = (0..MANY).map(|_| buffers.begin_upload()).collect();
        assert_eq!(one.piece(), SMALL_PIECE);
        drop(others);
        assert_eq!(one.piece(), PIECE);
    }
}

//! The pipeline behind an upload: a thread that may block reads and hashes, the runtime sends.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::Descriptor;

use crate::error::TransferError;
use crate::progress::{Progress, ProgressEvent};
use crate::source::{BlobSource, CHUNK, ChunkReader};
use crate::verify::Verifier;

/// Pieces that wait between the two sides.
pub(crate) const WAITING: usize = 2;

/// The most memory one upload holds, bytes: waiting, being read, and being written.
pub(crate) const WINDOW: u64 = ((WAITING + 2) * CHUNK) as u64;

/// Content on its way into requests. It is hashed as it passes, each byte once however often it has
/// to be sent, and its last piece is kept back until the digest is known to be right: a registry
/// never gets all of something that is not what it claims to be.
pub(crate) struct Feed {
    source: Arc<dyn BlobSource>,
    size: u64,
    /// Has seen everything up to its position; gone when all is verified.
    verifier: Option<Verifier>,
    reader: Option<Box<dyn ChunkReader>>,
    /// The next byte that `rest` or `reader` gives.
    position: u64,
    /// What was read beyond the end of the last request.
    rest: Bytes,
}

impl Feed {
    pub(crate) fn new(source: Arc<dyn BlobSource>, descriptor: &Descriptor) -> Self {
        Self {
            source,
            size: descriptor.size,
            verifier: Some(Verifier::new(&descriptor.digest, descriptor.size)),
            reader: None,
            position: 0,
            rest: Bytes::new(),
        }
    }

    /// Where the content comes from.
    pub(crate) fn source(&self) -> &Arc<dyn BlobSource> {
        &self.source
    }

    /// Gives the bytes from `from` to `until`, until nobody wants them any more.
    pub(crate) fn run(
        &mut self,
        from: u64,
        until: u64,
        out: &Outlet,
        mut stopped: oneshot::Receiver<()>,
    ) -> Result<(), TransferError> {
        // What the server has but has not been hashed is read once more.
        let hashed = self.verifier.as_ref().map_or(self.size, Verifier::seen);
        let start = from.min(hashed);
        if self.position != start || self.reader.is_none() {
            self.reader = Some(self.source.open(start)?);
            self.position = start;
            self.rest = Bytes::new();
        }
        while self.position < until {
            let mut piece = self.next_piece()?;
            let end = self.position + piece.len() as u64;
            if end > until {
                self.rest = piece.split_off((until - self.position) as usize);
            }
            self.verify(&piece)?;
            let skipped = from.saturating_sub(self.position).min(piece.len() as u64);
            self.position += piece.len() as u64;
            let wanted = piece.slice(skipped as usize..);
            if !wanted.is_empty() && !out.send(wanted, &mut stopped) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn next_piece(&mut self) -> Result<Bytes, TransferError> {
        if !self.rest.is_empty() {
            return Ok(std::mem::take(&mut self.rest));
        }
        let next = match &mut self.reader {
            Some(reader) => reader.next_chunk()?,
            None => None,
        };
        next.ok_or_else(|| self.wrong_size(self.position))
    }

    /// Hashes what has not been hashed; at the end, decides.
    fn verify(&mut self, piece: &Bytes) -> Result<(), TransferError> {
        let Some(verifier) = &mut self.verifier else {
            return Ok(());
        };
        let known = verifier.seen() - self.position;
        let Some(new) = piece.get(known as usize..) else {
            return Ok(());
        };
        verifier.update(new)?;
        if verifier.missing() > 0 {
            return Ok(());
        }
        let more = match &mut self.reader {
            Some(reader) if self.rest.is_empty() => reader.next_chunk()?,
            _ => Some(self.rest.clone()),
        };
        if let Some(more) = more {
            return Err(self.wrong_size(self.size + more.len() as u64));
        }
        match self.verifier.take() {
            Some(verifier) => verifier.finish(),
            None => Ok(()),
        }
    }

    fn wrong_size(&self, got: u64) -> TransferError {
        TransferError::SizeMismatch {
            what: "content to upload".to_owned(),
            expected: self.size,
            got,
        }
    }
}

/// The sending side of the pipeline, as the blocking thread sees it.
pub(crate) struct Outlet {
    pub(crate) pieces: mpsc::Sender<Bytes>,
    pub(crate) runtime: Handle,
}

impl Outlet {
    /// False when the request is over.
    fn send(&self, piece: Bytes, stopped: &mut oneshot::Receiver<()>) -> bool {
        // Asked before every piece: where reading is slower than sending, there is always room.
        if !matches!(stopped.try_recv(), Err(TryRecvError::Empty)) {
            return false;
        }
        match self.pieces.try_send(piece) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            // A request may end without taking its body: waiting has to end then too.
            Err(TrySendError::Full(piece)) => self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    _ = stopped => false,
                    sent = self.pieces.send(piece) => sent.is_ok(),
                }
            }),
        }
    }
}

/// The receiving side: the body of a request, of known length.
pub(crate) struct UploadBody {
    pub(crate) pieces: mpsc::Receiver<Bytes>,
    pub(crate) position: u64,
    pub(crate) until: u64,
    pub(crate) digest: Digest,
    pub(crate) progress: Progress,
    pub(crate) activity: Arc<Activity>,
}

/// Content ended before the body did; why is known to the feed.
#[derive(Debug, thiserror::Error)]
#[error("the content ended early")]
pub(crate) struct EndedEarly;

impl Body for UploadBody {
    type Data = Bytes;
    type Error = EndedEarly;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, EndedEarly>>> {
        if self.position >= self.until {
            return Poll::Ready(None);
        }
        self.activity.hungry.store(true, Ordering::Relaxed);
        let piece = ready!(self.pieces.poll_recv(cx));
        self.activity.hungry.store(false, Ordering::Relaxed);
        self.activity.touch();
        let Some(piece) = piece else {
            return Poll::Ready(Some(Err(EndedEarly)));
        };
        self.position += piece.len() as u64;
        if self.position >= self.until {
            self.activity.complete.store(true, Ordering::Relaxed);
        }
        self.progress.event(&ProgressEvent::Advanced {
            digest: self.digest.clone(),
            done: self.position,
        });
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.position >= self.until
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.until - self.position)
    }
}

/// When a request last moved. Waiting for content counts as moving: the content's source has time
/// limits of its own.
pub(crate) struct Activity {
    start: Instant,
    last: AtomicU64,
    hungry: AtomicBool,
    complete: AtomicBool,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
            hungry: AtomicBool::new(false),
            complete: AtomicBool::new(false),
        }
    }

    /// For a body that was there from the start.
    pub(crate) fn all_at_hand(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    fn touch(&self) {
        let now = self.start.elapsed().as_millis() as u64;
        self.last.store(now, Ordering::Relaxed);
    }

    /// Ends when nothing moved for `idle`, or for `commit` once all was sent.
    pub(crate) async fn stalled(&self, idle: Duration, commit: Duration) {
        loop {
            let complete = self.complete.load(Ordering::Relaxed);
            let limit = if complete { commit } else { idle };
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let until = self.start + last + limit;
            if Instant::now() < until {
                tokio::time::sleep_until(until).await;
            } else if self.hungry.load(Ordering::Relaxed) {
                self.touch();
            } else {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs one request's worth and gives what a server would have received.
    fn give(feed: &mut Feed, from: u64, until: u64) -> (Vec<u8>, Result<(), TransferError>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let (pieces, mut received) = mpsc::channel(64);
        let outlet = Outlet {
            pieces,
            runtime: runtime.handle().clone(),
        };
        let (_running, stopped) = oneshot::channel();
        let result = feed.run(from, until, &outlet, stopped);
        drop(outlet);
        let mut all = Vec::new();
        while let Some(piece) = received.blocking_recv() {
            all.extend_from_slice(&piece);
        }
        (all, result)
    }

    fn feed(content: &[u8], digest: &Digest, size: u64) -> Feed {
        let source = Arc::new(Bytes::copy_from_slice(content));
        Feed::new(source, &Descriptor::new("a/b", digest.clone(), size))
    }

    #[test]
    fn wrong_content_is_never_given_in_full() {
        let content = vec![1; 3 * CHUNK];
        let size = content.len() as u64;
        let (sent, result) = give(&mut feed(&content, &Digest::sha256(b""), size), 0, size);
        assert!(matches!(result, Err(TransferError::DigestMismatch { .. })));
        assert!(sent.len() < content.len());
    }

    #[test]
    fn content_of_another_size_is_never_given_in_full() {
        let content = vec![1; CHUNK + 1];
        let digest = Digest::sha256(&content);
        for size in [CHUNK as u64, CHUNK as u64 + 2] {
            let (sent, result) = give(&mut feed(&content, &digest, size), 0, size);
            assert!(
                matches!(result, Err(TransferError::SizeMismatch { .. })),
                "{size}"
            );
            assert!((sent.len() as u64) < size);
        }
    }

    #[test]
    fn a_request_that_ended_stops_the_feed() {
        let content = vec![1; 20 * CHUNK];
        let size = content.len() as u64;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        // With room for nothing more, and with room for everything.
        for room in [1, 64] {
            let (pieces, _kept) = mpsc::channel(room);
            let outlet = Outlet {
                pieces,
                runtime: runtime.handle().clone(),
            };
            let (running, stopped) = oneshot::channel::<()>();
            drop(running);
            let mut feed = feed(&content, &Digest::sha256(&content), size);
            assert!(feed.run(0, size, &outlet, stopped).is_ok());
            assert!(feed.position < size);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However the requests are cut and wherever the server stands in between, it receives the
        /// content, and every byte was hashed once.
        #[test]
        fn any_sequence_of_requests_gives_the_content(
            size in 1usize..2 * CHUNK,
            cuts in prop::collection::vec((0usize..2 * CHUNK, 0usize..2 * CHUNK), 0..6),
        ) {
            let content: Vec<u8> = (0..size).map(|at| (at * 7 % 253) as u8).collect();
            let size = size as u64;
            let mut feed = feed(&content, &Digest::sha256(&content), size);
            for (from, until) in cuts {
                let from = (from as u64).min(size);
                let until = (until as u64).clamp(from, size);
                let (sent, result) = give(&mut feed, from, until);
                prop_assert!(result.is_ok(), "{:?}", result);
                prop_assert_eq!(&sent[..], &content[from as usize..until as usize]);
            }
            let (sent, result) = give(&mut feed, 0, size);
            prop_assert!(result.is_ok(), "{:?}", result);
            prop_assert_eq!(sent, content);
            prop_assert!(feed.verifier.is_none());
        }
    }
}

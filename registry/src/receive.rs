//! Bodies of requests.

use std::error::Error;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::{Instant, timeout};
use vdkr_core::distribution::ErrorCode;

use crate::budget::{Budget, Room};
use crate::error::Refusal;
use crate::registry::Registry;
use crate::storage::Sink;

/// Bytes of a refused body that are read so that the client comes to read the answer.
const DRAINED: u64 = 256 << 10;
/// How long they may take.
const DRAINING: Duration = Duration::from_secs(10);

/// The body of a request, in pieces, with a limit on how long the client may pause.
pub(crate) struct Incoming {
    body: Option<UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>>,
    length: Option<u64>,
    pause: Duration,
}

impl Incoming {
    pub(crate) fn none() -> Self {
        Self {
            body: None,
            length: Some(0),
            pause: Duration::ZERO,
        }
    }

    pub(crate) fn new(
        body: UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>,
        length: Option<u64>,
        pause: Duration,
    ) -> Self {
        Self {
            body: Some(body),
            length,
            pause,
        }
    }

    /// Its length in bytes, if the client has announced it.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next piece; `None` at the end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let Some(body) = &mut self.body else {
                return Ok(None);
            };
            let frame = timeout(self.pause, body.frame())
                .await
                .map_err(|_| too_slow("the body of the request stopped coming"))?;
            match frame {
                None => {
                    self.body = None;
                    return Ok(None);
                }
                Some(Ok(frame)) => {
                    // Trailers mean nothing here.
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    self.body = None;
                    tracing::debug!(%error, "a request broke off");
                    return Err(Refusal::new(ErrorCode::Unknown, "the request broke off")
                        .with_status(StatusCode::BAD_REQUEST));
                }
            }
        }
    }

    /// [`Incoming::piece`], and what is left of the time to wait for pieces.
    async fn piece_within(&mut self, time: &mut Duration) -> Result<Option<Bytes>, Refusal> {
        let begun = Instant::now();
        let piece = timeout(*time, self.piece())
            .await
            .map_err(|_| too_slow("the body of the request came too slowly"))?;
        *time = time.saturating_sub(begun.elapsed());
        piece
    }

    /// All of it, if it is no longer than `cap`, the client takes no longer than `time` to send it, and
    /// there is room for it in the budget; with the room.
    pub(crate) async fn whole(
        &mut self,
        cap: usize,
        mut time: Duration,
        budget: &Budget,
    ) -> Result<(Bytes, Room), Refusal> {
        let too_long = || {
            Refusal::new(
                ErrorCode::SizeInvalid,
                format!("the body is longer than {cap} bytes"),
            )
            .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        };
        if self.length.is_some_and(|length| length > cap as u64) {
            return Err(too_long());
        }
        let mut room = Room::default();
        let Some(first) = self.piece_within(&mut time).await? else {
            return Ok((Bytes::new(), room));
        };
        budget.grow(&mut room, first.len()).await?;
        if self.length == Some(first.len() as u64) {
            return Ok((first, room));
        }
        let mut all = BytesMut::from(first);
        while let Some(piece) = self.piece_within(&mut time).await? {
            if all.len() + piece.len() > cap {
                return Err(too_long());
            }
            budget.grow(&mut room, all.len() + piece.len()).await?;
            all.extend_from_slice(&piece);
        }
        if all.len() > cap {
            return Err(too_long());
        }
        Ok((all.freeze(), room))
    }

    /// Reads on for a while and forgets it. A connection closed with unread bytes would be reset, and
    /// the client might never see why.
    pub(crate) async fn drain(mut self) {
        if self.length.is_some_and(|length| length > DRAINED) {
            return;
        }
        self.pause = self.pause.min(Duration::from_secs(2));
        let drained = async {
            let mut left = DRAINED;
            while let Ok(Some(piece)) = self.piece().await {
                left = left.saturating_sub(piece.len() as u64);
                if left == 0 {
                    break;
                }
            }
        };
        // Whether it came to its end or not: the answer is the same.
        let _ = timeout(DRAINING, drained).await;
    }

    /// Moves the body into a sink, at most `limit` bytes of it. While one batch is hashed and written,
    /// the next one is received.
    ///
    /// When the client breaks off, what has arrived is kept, and so is the session. When the storage
    /// fails, the session ends.
    pub(crate) async fn pour(
        &mut self,
        registry: &Registry,
        mut sink: Sink,
        limit: u64,
    ) -> Result<Sink, Refusal> {
        let upload = registry.buffers().begin_upload();
        let mut batch = self.batch(upload.piece()).await;
        let mut received: u64 = 0;
        loop {
            received += batch.size as u64;
            if received > limit {
                return Err(Refusal::new(
                    ErrorCode::SizeInvalid,
                    format!("the body is longer than the {limit} bytes announced"),
                ));
            }
            let Batch { pieces, end, .. } = batch;
            if pieces.is_empty()
                && let Some(end) = end
            {
                return end.map(|()| sink);
            }
            let written = registry.blocking(move |storage| match sink.write(&pieces) {
                Ok(()) => Ok(sink),
                Err(error) => {
                    storage.abandon(&sink);
                    Err(error)
                }
            });
            if let Some(end) = end {
                sink = written.await?;
                return end.map(|()| sink);
            }
            let (written, next) = tokio::join!(written, self.batch(upload.piece()));
            sink = written?;
            batch = next;
        }
    }

    async fn batch(&mut self, room: usize) -> Batch {
        let mut batch = Batch {
            pieces: Vec::new(),
            size: 0,
            end: None,
        };
        while batch.size < room {
            match self.piece().await {
                Ok(Some(piece)) => {
                    batch.size += piece.len();
                    batch.pieces.push(piece);
                }
                Ok(None) => {
                    batch.end = Some(Ok(()));
                    break;
                }
                Err(refusal) => {
                    batch.end = Some(Err(refusal));
                    break;
                }
            }
        }
        batch
    }
}

/// The refusal of a body that does not come in time.
fn too_slow(message: &str) -> Refusal {
    Refusal::new(ErrorCode::Unknown, message).with_status(StatusCode::REQUEST_TIMEOUT)
}

/// Pieces of a body that are hashed and written at once.
struct Batch {
    pieces: Vec<Bytes>,
    size: usize,
    /// Set when nothing follows: the body has ended, or broken off.
    end: Option<Result<(), Refusal>>,
}

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
use crate::config::Limits;
use crate::error::Refusal;
use crate::pace::Pace;
use crate::registry::Registry;
use crate::storage::Sink;

/// Bytes of a refused body that are read so that the client comes to read the answer.
const DRAINED: u64 = 256 << 10;
/// How long they may take.
const DRAINING: Duration = Duration::from_secs(10);
/// Pieces shorter than this are put together: each costs memory, a system call and a step of the hash
/// beside its bytes.
const SHORT: usize = 4 << 10;

/// The body of a request, in pieces, with limits on how long the client may pause and how slow it may be.
pub(crate) struct Incoming {
    body: Option<UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>>,
    length: Option<u64>,
    pause: Duration,
    pace: Option<Pace>,
}

impl Incoming {
    pub(crate) fn none() -> Self {
        Self {
            body: None,
            length: Some(0),
            pause: Duration::ZERO,
            pace: None,
        }
    }

    pub(crate) fn new(
        body: UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>,
        length: Option<u64>,
        limits: &Limits,
    ) -> Self {
        Self {
            body: Some(body),
            length,
            pause: limits.idle_timeout,
            pace: Some(Pace::new(limits)),
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
            let begun = Instant::now();
            let frame = timeout(self.pause, body.frame())
                .await
                .map_err(|_| too_slow("the body of the request stopped coming"))?;
            let bytes = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            };
            if let Some(pace) = &mut self.pace
                && !pace.keeps(begun.elapsed(), bytes)
                && frame.is_some()
            {
                return Err(too_slow("the body of the request came too slowly"));
            }
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
        self.pace = None;
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
            let (pieces, end) = batch.parts();
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
        let mut batch = Batch::default();
        while batch.size < room {
            match self.piece().await {
                Ok(Some(piece)) => batch.push(piece),
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
#[derive(Default)]
struct Batch {
    pieces: Vec<Bytes>,
    /// Short pieces that follow those, as one.
    short: BytesMut,
    size: usize,
    /// Set when nothing follows: the body has ended, or broken off.
    end: Option<Result<(), Refusal>>,
}

impl Batch {
    fn push(&mut self, piece: Bytes) {
        self.size += piece.len();
        if piece.len() < SHORT {
            self.short.extend_from_slice(&piece);
            return;
        }
        if !self.short.is_empty() {
            self.pieces.push(self.short.split().freeze());
        }
        self.pieces.push(piece);
    }

    fn parts(mut self) -> (Vec<Bytes>, Option<Result<(), Refusal>>) {
        if !self.short.is_empty() {
            self.pieces.push(self.short.freeze());
        }
        (self.pieces, self.end)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    fn incoming(pieces: Vec<Bytes>) -> Incoming {
        let frames = pieces
            .into_iter()
            .map(|piece| Ok::<_, Box<dyn Error + Send + Sync>>(Frame::data(piece)));
        let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        Incoming::new(body, None, &Limits::default())
    }

    #[tokio::test]
    async fn short_pieces_become_few() {
        let content: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let bytes = content.iter().map(|byte| Bytes::copy_from_slice(&[*byte]));
        let mut body = incoming(bytes.collect());
        let batch = body.batch(256 << 10).await;
        assert_eq!(batch.size, 256 << 10);
        let (pieces, end) = batch.parts();
        assert!(end.is_none());
        assert_eq!(pieces.len(), 1);
        let (rest, end) = body.batch(256 << 10).await.parts();
        assert!(matches!(end, Some(Ok(()))));
        assert_eq!([&pieces[0][..], &rest[0][..]].concat(), content);
    }

    #[tokio::test]
    async fn long_pieces_stay_where_they_are_and_in_order() {
        let long = Bytes::from(vec![7; SHORT]);
        let short = Bytes::from_static(b"short");
        let sent: Vec<_> = [&long, &short, &short, &long, &long, &short]
            .map(Bytes::clone)
            .into();
        let (pieces, _) = incoming(sent.clone()).batch(1 << 20).await.parts();
        let lengths: Vec<_> = pieces.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [SHORT, 10, SHORT, SHORT, 5]);
        for at in [0, 2, 3] {
            assert_eq!(pieces[at].as_ptr(), long.as_ptr());
        }
        assert_eq!(pieces.concat(), sent.concat());
    }
}

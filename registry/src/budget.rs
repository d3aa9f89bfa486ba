//! Memory that the manifests of all requests may take up together.
//!
//! What has arrived counts, not what was announced: whoever sends nothing keeps nobody out. And it is
//! read only when all of it is here, with room for what becomes of it while it is read: that room is
//! held by work, never by a client, so slow ones cannot keep the others from being read.

use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use vdkr_core::distribution::ErrorCode;

use crate::config::Limits;
use crate::error::Refusal;

/// What a manifest is weighed in.
const UNIT: usize = 1024;
/// Bytes of each request that need no room: nearly all manifests are shorter, and never wait for
/// others to arrive. As many as connections are allowed.
const FREE: usize = 64 << 10;
/// What a manifest that has more asks room for at a time.
const STEP: usize = 64 << 10;
/// Bytes that one byte may become while a manifest is read: of lists of empty strings, and of maps with
/// short keys.
const GROWTH: usize = 16;

/// The room of a registry.
#[derive(Debug)]
pub(crate) struct Budget {
    arriving: Arc<Semaphore>,
    reading: Arc<Semaphore>,
    units: usize,
    patience: Duration,
}

/// The room of one manifest, until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Bytes beside the free ones that it has room for.
    bytes: usize,
    /// For how long it has waited while it arrived.
    waited: Duration,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        let units = limits
            .manifest_budget
            .div_ceil(UNIT)
            .clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self {
            arriving: Arc::new(Semaphore::new(units)),
            reading: Arc::new(Semaphore::new(units)),
            units,
            patience: limits.manifest_wait,
        }
    }

    /// Gets room for a manifest of which `length` bytes are about to be in memory.
    pub(crate) async fn grow(&self, room: &mut Room, length: usize) -> Result<(), Refusal> {
        let needed = length.saturating_sub(FREE);
        if needed <= room.bytes {
            return Ok(());
        }
        let more = (needed - room.bytes).next_multiple_of(STEP);
        let begun = Instant::now();
        let patience = self.patience.saturating_sub(room.waited);
        let permit = self.acquire(&self.arriving, more, patience).await?;
        room.waited += begun.elapsed();
        room.bytes += more;
        room.permits.push(permit);
        Ok(())
    }

    /// Gets room for reading a manifest of this length.
    pub(crate) async fn read(&self, room: &mut Room, length: usize) -> Result<(), Refusal> {
        let bytes = length.saturating_mul(GROWTH);
        let permit = self.acquire(&self.reading, bytes, self.patience).await?;
        room.permits.push(permit);
        Ok(())
    }

    async fn acquire(
        &self,
        semaphore: &Arc<Semaphore>,
        bytes: usize,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit, Refusal> {
        // What needs more than there is gets all of it.
        let units = u32::try_from(bytes.div_ceil(UNIT).min(self.units)).unwrap_or(u32::MAX);
        let turn = Arc::clone(semaphore).acquire_many_owned(units);
        match timeout(patience, turn).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(busy("too many large manifests are being pushed at once")),
        }
    }
}

/// The refusal of what would be possible a little later.
pub(crate) fn busy(message: &str) -> Refusal {
    Refusal::new(
        ErrorCode::Unavailable,
        format!("{message}; try again in a moment"),
    )
    .with_header(RETRY_AFTER, http::HeaderValue::from_static("5"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(bytes: usize) -> Budget {
        Budget::new(&Limits {
            manifest_budget: bytes,
            manifest_wait: Duration::from_secs(10),
            ..Limits::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_taken_as_bytes_arrive_and_given_back() {
        let budget = budget(4 * STEP);
        let mut one = Room::default();
        for length in [
            1,
            FREE,
            FREE + 1,
            FREE + STEP,
            FREE + STEP + 1,
            FREE + 4 * STEP,
        ] {
            budget.grow(&mut one, length).await.unwrap();
        }
        assert_eq!(budget.arriving.available_permits(), 0);
        let mut two = Room::default();
        budget.grow(&mut two, FREE).await.unwrap();
        let refusal = budget.grow(&mut two, FREE + 1).await.unwrap_err();
        assert_eq!(refusal.status(), http::StatusCode::SERVICE_UNAVAILABLE);
        let response = refusal.into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "5");
        drop(one);
        budget.grow(&mut two, FREE + 1).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn all_waits_of_one_manifest_have_one_bound() {
        let budget = Arc::new(budget(2 * STEP));
        let (mut first, mut waiting) = (Room::default(), Room::default());
        budget.grow(&mut first, FREE + 2 * STEP).await.unwrap();
        let others = Arc::clone(&budget);
        let other = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(6)).await;
            drop(first);
            let mut next = Room::default();
            others.grow(&mut next, FREE + STEP).await.unwrap();
            tokio::time::sleep(Duration::from_secs(6)).await;
        });
        budget.grow(&mut waiting, FREE + STEP).await.unwrap();
        assert!((6..8).contains(&waiting.waited.as_secs()));
        assert!(budget.grow(&mut waiting, FREE + 2 * STEP).await.is_err());
        other.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_arrives_slowly_keeps_nothing_from_being_read() {
        let budget = budget(4 * STEP);
        let mut rooms = [(); 3].map(|()| Room::default());
        let [slow, small, large] = &mut rooms;
        budget.grow(slow, FREE + 4 * STEP).await.unwrap();
        budget.grow(small, 1000).await.unwrap();
        budget.read(small, 1000).await.unwrap();
        assert!(budget.read(large, 4 << 20).await.is_err());
        *small = Room::default();
        budget.read(large, 4 << 20).await.unwrap();
        assert_eq!(budget.reading.available_permits(), 0);
        *large = Room::default();
        assert_eq!(budget.reading.available_permits(), budget.units);
    }
}

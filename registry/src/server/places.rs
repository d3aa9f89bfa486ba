//! Places of connections, and how many of them one peer may have.
//!
//! A peer has at most half of all places; its other connections wait beside, without a place, and keep
//! nobody else from being accepted. Only a few can wait so, for each is an open file. Beyond them everybody
//! waits for a peer for a while, which is longer the more of its connections come and go, and then it is
//! refused.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::Peer;

/// Fewest and most connections that wait without a place.
const WAITING: (usize, usize) = (8, 256);
/// For how many milliseconds everybody waits for one peer, and how many more for each of its connections
/// that ends.
const CREDIT: (u64, u64) = (2000, 5);
/// What part of the places is left when there are few.
const FEW: usize = 4;

/// All places.
#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    seats: Arc<Semaphore>,
    count: usize,
    seat_count: usize,
    peers: Mutex<HashMap<Peer, Known>>,
}

/// A peer that has connections.
#[derive(Debug)]
struct Known {
    turns: Arc<Semaphore>,
    seats: Arc<Semaphore>,
    credit: Arc<AtomicU64>,
    connections: usize,
}

/// A connection of a peer, until it is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    places: Arc<Places>,
    peer: Peer,
    turns: Arc<Semaphore>,
    seats: Arc<Semaphore>,
    credit: Arc<AtomicU64>,
}

/// One of the places that a peer may have.
#[derive(Debug)]
pub(super) struct Turn(OwnedSemaphorePermit);

/// The right to wait for one.
#[derive(Debug)]
pub(super) struct Seat {
    _among_all: OwnedSemaphorePermit,
    _of_peer: OwnedSemaphorePermit,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _among_all: OwnedSemaphorePermit,
    _of_peer: OwnedSemaphorePermit,
    guest: Guest,
}

impl Places {
    /// So many places, and seats for those who wait, of so many that could be.
    pub(crate) fn new(count: usize, spare: usize) -> Arc<Self> {
        let seat_count = spare.clamp(WAITING.0, WAITING.1);
        Arc::new(Self {
            all: Arc::new(Semaphore::new(count)),
            seats: Arc::new(Semaphore::new(seat_count)),
            count,
            seat_count,
            peers: Mutex::default(),
        })
    }

    /// A connection of a peer has come.
    pub(super) fn enter(self: &Arc<Self>, peer: Peer) -> Guest {
        let mut peers = self.lock();
        let known = peers.entry(peer).or_insert_with(|| Known {
            turns: Arc::new(Semaphore::new(self.share())),
            seats: Arc::new(Semaphore::new(self.seat_count.div_ceil(2))),
            credit: Arc::new(AtomicU64::new(CREDIT.0)),
            connections: 0,
        });
        known.connections += 1;
        Guest {
            places: Arc::clone(self),
            peer,
            turns: Arc::clone(&known.turns),
            seats: Arc::clone(&known.seats),
            credit: Arc::clone(&known.credit),
        }
    }

    /// How many places one peer may have.
    fn share(&self) -> usize {
        self.count.div_ceil(2)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Peer, Known>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// One of the peer's places, if it may have one more.
    pub(super) fn turn(&self) -> Option<Turn> {
        let turn = Arc::clone(&self.turns).try_acquire_owned();
        turn.ok().map(Turn)
    }

    /// A seat to wait at, if one is left.
    pub(super) fn seat(&self) -> Option<Seat> {
        let of_peer = Arc::clone(&self.seats).try_acquire_owned().ok()?;
        let among_all = Arc::clone(&self.places.seats).try_acquire_owned().ok()?;
        Some(Seat {
            _among_all: among_all,
            _of_peer: of_peer,
        })
    }

    /// Waits for one of the peer's places. `None`: the server ends.
    pub(super) async fn wait(&self) -> Option<Turn> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        turn.ok().map(Turn)
    }

    /// Waits until a place is free. `None`: the server ends.
    pub(super) async fn place(self, turn: Turn) -> Option<Place> {
        let all = Arc::clone(&self.places.all);
        Some(Place {
            _among_all: all.acquire_owned().await.ok()?,
            _of_peer: turn.0,
            guest: self,
        })
    }

    /// Whether the others may be kept waiting for this peer.
    pub(super) fn has_credit(&self) -> bool {
        self.credit.load(Ordering::Relaxed) > 0
    }

    /// They were, for so long.
    pub(super) fn spend(&self, waited: Duration) {
        let waited = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        let spent = |credit: u64| Some(credit.saturating_sub(waited.max(1)));
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.credit.fetch_update(set, get, spent);
    }
}

impl Place {
    /// Whose it is.
    pub(super) fn peer(&self) -> Peer {
        self.guest.peer
    }

    /// Whether few places are left, in all or of those of this peer.
    pub(super) fn is_of_the_last(&self) -> bool {
        let places = &self.guest.places;
        let few = |semaphore: &Semaphore, of: usize| semaphore.available_permits() < of / FEW;
        few(&places.all, places.count) || few(&self.guest.turns, places.share())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (most, more) = CREDIT;
        let gained = |credit: u64| Some((credit + more).min(most));
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.guest.credit.fetch_update(set, get, gained);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut peers = self.places.lock();
        if let Some(known) = peers.get_mut(&self.peer) {
            known.connections -= 1;
            if known.connections == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::at(address.parse().unwrap())
    }

    async fn placed(places: &Arc<Places>, peer: Peer) -> Option<Place> {
        let guest = places.enter(peer);
        let turn = guest.turn()?;
        guest.place(turn).await
    }

    #[tokio::test]
    async fn a_peer_has_half_of_the_places_and_the_others_the_rest() {
        let places = Places::new(8, 0);
        let (greedy, honest) = (peer("127.0.0.1"), peer("10.0.0.2"));
        let mut taken = Vec::new();
        while let Some(place) = placed(&places, greedy).await {
            taken.push(place);
        }
        assert_eq!(taken.len(), 4);
        assert!(!taken.is_empty() && taken[0].is_of_the_last());
        let place = placed(&places, honest).await.unwrap();
        assert!(!place.is_of_the_last());
        // Whoever waits comes next.
        let waiting = places.enter(greedy);
        let seat = waiting.seat().unwrap();
        let waited = timeout(Duration::from_millis(10), waiting.wait()).await;
        assert!(waited.is_err());
        waiting.spend(Duration::from_secs(1));
        assert!(places.enter(greedy).has_credit());
        waiting.spend(Duration::from_secs(1));
        assert!(!places.enter(greedy).has_credit() && places.enter(honest).has_credit());
        taken.pop();
        assert!(waiting.has_credit());
        waiting.spend(Duration::from_millis(5));
        assert!(!waiting.has_credit());
        let turn = waiting.wait().await.unwrap();
        drop(seat);
        taken.push(waiting.place(turn).await.unwrap());
        assert!(placed(&places, greedy).await.is_none());
        drop((taken, place));
        assert!(places.lock().is_empty());
        assert_eq!(places.all.available_permits(), 8);
    }

    #[tokio::test]
    async fn no_peer_takes_all_seats() {
        let places = Places::new(8, 0);
        let guests: Vec<_> = (0..20).map(|_| places.enter(peer("127.0.0.1"))).collect();
        let seats: Vec<_> = guests.iter().filter_map(Guest::seat).collect();
        assert_eq!(seats.len(), 4);
        assert!(places.enter(peer("10.0.0.2")).seat().is_some());
    }

    #[tokio::test]
    async fn a_single_place_is_anybodys() {
        let places = Places::new(1, 0);
        let one = placed(&places, peer("127.0.0.1")).await.unwrap();
        assert!(!one.is_of_the_last());
        let guest = places.enter(peer("10.0.0.2"));
        let turn = guest.turn().unwrap();
        let waiting = tokio::spawn(guest.place(turn));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(one);
        waiting.await.unwrap().unwrap();
    }
}

//! Whose password is checked next.
//!
//! A check keeps a processor busy for tens of milliseconds, and wrong passwords cost what right ones do.
//! So an address has one check under way or about to be at a time, and waits in its own line for the
//! next one: whoever guesses passwords, over however many connections, delays other addresses by one
//! check. Lines are bounded; beyond that, the answer is to come back later.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most checks at a time.
pub(super) const CHECKS: usize = 2;
/// Most that wait, or are checked, of one address.
const MOST_OF_ONE: usize = 256;
/// Most addresses that wait.
const MOST_ADDRESSES: usize = 512;

/// Where a request comes from, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Peer(Option<IpAddr>);

impl Peer {
    /// The peer at this address. All addresses of one IPv6 network are one peer: everybody has as many
    /// as they like.
    pub(crate) fn at(address: IpAddr) -> Self {
        Self(Some(match address.to_canonical() {
            IpAddr::V6(address) => {
                Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into()
            }
            v4 @ IpAddr::V4(_) => v4,
        }))
    }
}

/// All lines.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) turns: Arc<Semaphore>,
    lines: Arc<Mutex<HashMap<Peer, Line>>>,
}

#[derive(Debug)]
struct Line {
    turn: Arc<Semaphore>,
    length: usize,
}

/// The right to check one password, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _among_all: OwnedSemaphorePermit,
    _in_line: OwnedSemaphorePermit,
    _place: Place,
}

/// A place in the line of a peer, whether it waits or is checked.
#[derive(Debug)]
struct Place {
    queue: Queue,
    peer: Peer,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(CHECKS)),
            lines: Arc::default(),
        }
    }

    /// Waits for a turn. `None`: too many wait already.
    pub(super) async fn turn(&self, peer: Peer) -> Option<Turn> {
        let (place, line) = self.enter(peer)?;
        let in_line = line.acquire_owned().await.ok()?;
        let among_all = Arc::clone(&self.turns).acquire_owned().await.ok()?;
        Some(Turn {
            _among_all: among_all,
            _in_line: in_line,
            _place: place,
        })
    }

    fn enter(&self, peer: Peer) -> Option<(Place, Arc<Semaphore>)> {
        let mut lines = self.lines();
        if lines.len() >= MOST_ADDRESSES && !lines.contains_key(&peer) {
            return None;
        }
        let line = lines.entry(peer).or_insert_with(|| Line {
            turn: Arc::new(Semaphore::new(1)),
            length: 0,
        });
        if line.length >= MOST_OF_ONE {
            return None;
        }
        line.length += 1;
        let place = Place {
            queue: self.clone(),
            peer,
        };
        Some((place, Arc::clone(&line.turn)))
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<Peer, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.queue.lines();
        if let Some(line) = lines.get_mut(&self.peer) {
            line.length -= 1;
            if line.length == 0 {
                lines.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::at(address.parse().unwrap())
    }

    #[test]
    fn addresses_of_one_owner_are_one_peer() {
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1:2:3"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:10.1.2.3"), peer("10.1.2.3"));
        assert_ne!(peer("10.1.2.3"), peer("10.1.2.4"));
        assert_ne!(peer("0.0.0.0"), Peer::default());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_many_connections_waits_in_their_own_line() {
        let queue = Queue::new();
        let (guesser, honest) = (peer("10.0.0.1"), peer("10.0.0.2"));
        let under_way = queue.turn(guesser).await.unwrap();
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { drop(queue.turn(guesser).await.unwrap()) })
            })
            .collect();
        while queue.lines()[&guesser].length <= 100 {
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            let turn = timeout(Duration::from_secs(1), queue.turn(honest)).await;
            turn.unwrap().unwrap();
        }
        assert!(waiting.iter().all(|task| !task.is_finished()));
        drop(under_way);
        for task in waiting {
            task.await.unwrap();
        }
        assert!(queue.lines().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_bounded_and_who_leaves_makes_room() {
        let queue = Queue::new();
        let full: Vec<_> = (0..MOST_OF_ONE)
            .map(|_| queue.enter(peer("10.0.0.1")).unwrap())
            .collect();
        assert!(queue.turn(peer("10.0.0.1")).await.is_none());
        let others: Vec<_> = (1..MOST_ADDRESSES)
            .map(|n| {
                let address = Ipv6Addr::from((n as u128) << 64);
                queue.enter(Peer::at(address.into())).unwrap()
            })
            .collect();
        assert!(queue.turn(peer("10.0.0.2")).await.is_none());
        drop(full);
        queue.turn(peer("10.0.0.2")).await.unwrap();
        drop(others);
        // A client that does not wait any longer leaves the line.
        let turn = queue.turn(peer("10.0.0.1")).await.unwrap();
        let given_up = timeout(Duration::from_secs(1), queue.turn(peer("10.0.0.1")));
        assert!(given_up.await.is_err());
        assert_eq!(queue.lines()[&peer("10.0.0.1")].length, 1);
        drop(turn);
        assert!(queue.lines().is_empty());
    }
}

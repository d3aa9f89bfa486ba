//! How fast a peer has to be.
//!
//! A limit on how long it may pause is kept by one byte at a time, which holds a connection for as long as
//! its peer likes. So bytes are counted as well, over the time in which the server waited for the peer
//! and for nothing else.

use std::time::Duration;

use crate::config::Limits;

/// The pace of one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Bytes a second.
    rate: u64,
    /// The time over which the mean is taken.
    span: Duration,
    waited: Duration,
    moved: u64,
}

impl Pace {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            rate: limits.body_rate,
            span: limits.idle_timeout,
            waited: Duration::ZERO,
            moved: 0,
        }
    }

    /// Notes bytes that came, or went, after a wait. `false`: the peer is too slow.
    pub(crate) fn keeps(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.moved += bytes as u64;
        if self.waited < self.span {
            return true;
        }
        let wanted = u128::from(self.rate) * self.waited.as_millis() / 1000;
        let enough = u128::from(self.moved) >= wanted;
        (self.waited, self.moved) = (Duration::ZERO, 0);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_over_a_while_counts() {
        let limits = Limits {
            body_rate: 1000,
            idle_timeout: Duration::from_secs(10),
            ..Limits::default()
        };
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(&limits);
        // At once, after a long pause, and steadily.
        assert!(pace.keeps(Duration::ZERO, 1));
        assert!(pace.keeps(second * 9, 0) && pace.keeps(second, 10_000));
        assert!((0..100).all(|_| pace.keeps(second, 1000)));
        assert!(!(0..10).all(|_| pace.keeps(second, 999)));
        // What was fast before does not count for ever.
        assert!(pace.keeps(second * 10, 1_000_000));
        assert!(!(0..10).all(|_| pace.keeps(second, 1)));
        let mut any = Pace::new(&Limits {
            body_rate: 0,
            ..limits
        });
        assert!((0..100).all(|_| any.keeps(second, 0)));
    }
}

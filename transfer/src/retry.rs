//! When a failed request is repeated: exponential back-off with jitter, and `Retry-After`
//! (RFC 9110 §10.2.3).

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often and how patiently a request is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries altogether; 1 means never again.
    pub attempts: u32,
    /// Pause before the second try; doubles from there.
    pub first_pause: Duration,
    /// The longest pause, also when the server asks for more.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    /// Six tries within about five seconds; up to 30 s each time where the server asks for it.
    fn default() -> Self {
        Self {
            attempts: 6,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    /// One try only.
    pub fn never() -> Self {
        Self {
            attempts: 1,
            ..Self::default()
        }
    }

    /// How long to wait after this many failures (from 1), or `None` when it was the last try.
    ///
    /// A server's wish is a lower bound, capped; without one, half of the pause is random, so that
    /// clients which failed together do not come back together.
    pub(crate) fn pause(&self, failures: u32, wish: Option<Duration>) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let doubled = 1u32
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u32::MAX);
        let full = self
            .first_pause
            .saturating_mul(doubled)
            .min(self.longest_pause);
        let jittered = full / 2 + full.mul_f64(random_fraction() / 2.0);
        Some(match wish {
            Some(wish) => wish.min(self.longest_pause).max(jittered),
            None => jittered,
        })
    }
}

/// From 0 to 1. The standard library seeds its hash maps at random; no more is needed here.
fn random_fraction() -> f64 {
    f64::from(RandomState::new().hash_one(0u8) as u32) / f64::from(u32::MAX)
}

/// Reads `Retry-After`: seconds, or a date in the format that HTTP prescribes to senders.
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let at = UNIX_EPOCH + Duration::from_secs(http_date(value)?);
    Some(at.duration_since(now).unwrap_or_default())
}

/// Seconds since 1970 of an IMF-fixdate: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, rest) = text.split_once(", ")?;
    let mut parts = rest.split(' ');
    let day: u64 = digits(parts.next()?, 2)?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = digits(parts.next()?, 4)?;
    let mut clock = parts.next()?.split(':');
    let hour = digits(clock.next()?, 2)?;
    let minute = digits(clock.next()?, 2)?;
    let second = digits(clock.next()?, 2)?;
    let in_range = (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    let zone = (parts.next(), parts.next());
    if !in_range || year < 1970 || clock.next().is_some() || zone != (Some("GMT"), None) {
        return None;
    }
    // Days since 1970 with the year taken to begin in March (the leap day is then its last).
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    // 719468 days lie between 0000-03-01 and 1970-01-01.
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

fn digits(text: &str, width: usize) -> Option<u64> {
    let plain = text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let policy = RetryPolicy {
            attempts: 4,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_millis(300),
        };
        for (failures, low, high) in [(1, 50, 100), (2, 100, 200), (3, 150, 300)] {
            let pause = policy.pause(failures, None).unwrap().as_millis();
            assert!((low..=high).contains(&pause), "{failures}: {pause}");
        }
        assert_eq!(policy.pause(4, None), None);
        assert_eq!(RetryPolicy::never().pause(1, None), None);
    }

    #[test]
    fn the_servers_wish_is_honoured_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let wish = |seconds| policy.pause(1, Some(Duration::from_secs(seconds))).unwrap();
        assert_eq!(wish(7), Duration::from_secs(7));
        assert_eq!(wish(86_400), policy.longest_pause);
        assert!(wish(0) > Duration::ZERO);
    }

    #[test]
    fn dates() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 29 Feb 2024 23:59:59 GMT", 1_709_251_199),
            ("Fri, 31 Dec 2027 00:00:00 GMT", 1_830_211_200),
        ] {
            assert_eq!(http_date(text), Some(seconds), "{text}");
        }
        for text in [
            "06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1969 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT x",
        ] {
            let parsed = http_date(text);
            assert!(
                parsed.is_none() || text.ends_with('x'),
                "{text}: {parsed:?}"
            );
        }
    }

    #[test]
    fn seconds_and_dates_relative_to_now() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        let after = |text| retry_after(text, now);
        assert_eq!(after(" 120 "), Some(Duration::from_mins(2)));
        assert_eq!(
            after("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::from_secs(7))
        );
        assert_eq!(after("Sun, 06 Nov 1994 08:49:00 GMT"), Some(Duration::ZERO));
        for nonsense in ["", "-1", "soon", "99999999999999999999"] {
            assert_eq!(after(nonsense), None, "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = retry_after(&text, UNIX_EPOCH);
        }

        #[test]
        fn never_panics_near_a_date(text in "[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT") {
            let _ = retry_after(&text, UNIX_EPOCH);
        }

        #[test]
        fn pause_stays_within_bounds(failures in 1u32..100, wish in proptest::option::of(0u64..100_000)) {
            let policy = RetryPolicy { attempts: 200, ..RetryPolicy::default() };
            let pause = policy.pause(failures, wish.map(Duration::from_secs)).unwrap();
            prop_assert!(pause <= policy.longest_pause);
        }
    }
}

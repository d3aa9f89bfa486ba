//! The sum of what is under way: how far, how fast, how long still, and whether it stands still.
//! Times come from the caller.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Time between two lines.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
/// Silence after which something is said about it; again after twice as long, and so on.
const STALL: Duration = Duration::from_secs(30);

/// Everything that moves, together.
#[derive(Debug)]
pub(super) struct Tally {
    began: Instant,
    /// Position and size of each item under way, in bytes.
    items: HashMap<String, (u64, u64)>,
    /// What was announced before it began, in bytes.
    planned: u64,
    /// Sizes of items that began, in bytes.
    begun: u64,
    /// Sizes of items that ended, in bytes.
    ended: u64,
    count: usize,
    ended_count: usize,
    /// When bytes last moved, and when to complain next.
    moved: Instant,
    complain: Duration,
    reported: (Instant, u64),
}

/// What there is to say.
#[derive(Debug, PartialEq)]
pub(super) enum Word {
    /// The state after another interval.
    State(State),
    /// Nothing moved for this long.
    Stalled(Duration),
}

/// How far it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) items: usize,
    pub(super) items_done: usize,
    pub(super) bytes: u64,
    pub(super) bytes_done: u64,
    /// Bytes a second, since the last report.
    pub(super) rate: u64,
    /// Time that the rest takes at this rate.
    pub(super) left: Option<Duration>,
}

impl Tally {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            items: HashMap::new(),
            planned: 0,
            begun: 0,
            ended: 0,
            count: 0,
            ended_count: 0,
            moved: now,
            complain: STALL,
            reported: (now, 0),
        }
    }

    pub(super) fn planned(&mut self, bytes: u64) {
        self.planned = self.planned.saturating_add(bytes);
    }

    pub(super) fn started(&mut self, key: &str, total: u64, now: Instant) {
        if self.items.is_empty() {
            // Time without work is neither slow nor a stall.
            self.moved = now;
            self.complain = STALL;
            self.reported = (now, self.done());
        }
        if self.items.insert(key.to_owned(), (0, total)).is_none() {
            self.begun = self.begun.saturating_add(total);
            self.count += 1;
        }
    }

    pub(super) fn advanced(&mut self, key: &str, done: u64, now: Instant) {
        if let Some((position, _)) = self.items.get_mut(key)
            && *position != done
        {
            *position = done;
            self.moved = now;
            self.complain = STALL;
        }
    }

    pub(super) fn finished(&mut self, key: &str, now: Instant) {
        match self.items.remove(key) {
            Some((_, total)) => self.ended = self.ended.saturating_add(total),
            // Ended without having begun: it was there.
            None => self.count += 1,
        }
        self.ended_count += 1;
        self.moved = now;
        self.complain = STALL;
    }

    fn done(&self) -> u64 {
        let under_way = self.items.values().map(|(done, _)| *done);
        under_way.fold(self.ended, u64::saturating_add)
    }

    /// What there is to say now.
    pub(super) fn word(&mut self, now: Instant) -> Option<Word> {
        if self.items.is_empty() {
            return None;
        }
        let silent = now.duration_since(self.moved);
        if silent >= self.complain {
            self.complain = silent * 2;
            return Some(Word::Stalled(silent));
        }
        let (last, before) = self.reported;
        let past = now.duration_since(last);
        if past < INTERVAL || silent >= STALL {
            return None;
        }
        let done = self.done();
        self.reported = (now, done);
        let millis = u64::try_from(past.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = done.saturating_sub(before).saturating_mul(1000) / millis;
        let bytes = self.planned.max(self.begun).max(done);
        let left = (bytes - done).checked_div(rate).map(Duration::from_secs);
        Some(Word::State(State {
            items: self.count,
            items_done: self.ended_count,
            bytes,
            bytes_done: done,
            rate,
            left,
        }))
    }

    /// Since the beginning.
    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        now.duration_since(self.began)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            items,
            items_done,
            bytes,
            bytes_done,
            rate,
            ref left,
        } = *self;
        let percent = bytes_done
            .saturating_mul(100)
            .checked_div(bytes)
            .unwrap_or(100);
        write!(
            f,
            "{items_done} of {items} blobs, {} of {} ({percent}%), {}/s",
            Bytes(bytes_done),
            Bytes(bytes),
            Bytes(rate)
        )?;
        match left {
            Some(left) => write!(f, ", ETA {}", Span(*left)),
            None => f.write_str(", ETA unknown"),
        }
    }
}

/// A size for people, in binary units.
pub(super) struct Bytes(pub(super) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        // Tenths of the unit, without floating point.
        let (mut tenths, mut unit) = (u128::from(self.0) * 10 / 1024, 0);
        while tenths >= 10_240 && unit + 1 < UNITS.len() {
            tenths /= 1024;
            unit += 1;
        }
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// A time for people: `45s`, `2m05s`, `3h20m`.
pub(super) struct Span(pub(super) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, seconds) => write!(f, "{seconds}s"),
            (0, minutes, seconds) => write!(f, "{minutes}m{seconds:02}s"),
            (hours, minutes, _) => write!(f, "{hours}h{minutes:02}m"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn one_line_an_interval_with_rate_and_rest() {
        let start = Instant::now();
        let at = |number| start + seconds(number);
        let mut tally = Tally::new(start);
        assert_eq!(tally.word(at(100)), None, "nothing is under way");
        tally.planned(400 * MIB);
        tally.started("a", 100 * MIB, at(100));
        tally.advanced("a", 50 * MIB, at(105));
        assert_eq!(tally.word(at(109)), None, "too early");
        let Some(Word::State(state)) = tally.word(at(110)) else {
            panic!("a line is due")
        };
        assert_eq!(
            state.to_string(),
            "0 of 1 blobs, 50.0 MiB of 400.0 MiB (12%), 5.0 MiB/s, ETA 1m10s"
        );
        tally.finished("a", at(111));
        tally.finished("b", at(111));
        tally.started("c", 300 * MIB, at(111));
        assert_eq!(
            tally.word(at(112)),
            None,
            "the interval starts with the work"
        );
        tally.advanced("c", 10 * MIB, at(120));
        // A broken connection: part of it goes again.
        tally.advanced("c", 0, at(121));
        let Some(Word::State(state)) = tally.word(at(121)) else {
            panic!("a line is due")
        };
        assert_eq!(
            state.to_string(),
            "2 of 3 blobs, 100.0 MiB of 400.0 MiB (25%), 0 B/s, ETA unknown"
        );
        assert_eq!(tally.elapsed(at(121)), seconds(121));
    }

    #[test]
    fn a_standstill_is_said_ever_more_rarely() {
        let start = Instant::now();
        let at = |number| start + seconds(number);
        let mut tally = Tally::new(start);
        tally.started("a", 10, start);
        let words: Vec<_> = (0..130)
            .filter_map(|second| Some((second, tally.word(at(second))?)))
            .filter_map(|(second, word)| match word {
                Word::Stalled(silent) => Some((second, silent.as_secs())),
                Word::State(_) => None,
            })
            .collect();
        assert_eq!(words, [(30, 30), (60, 60), (120, 120)]);
        tally.advanced("a", 5, at(130));
        assert_eq!(
            tally.word(at(159)).map(|w| matches!(w, Word::State(_))),
            Some(true)
        );
        assert_eq!(tally.word(at(160)), Some(Word::Stalled(seconds(30))));
    }

    #[test]
    fn sizes_and_times_for_people() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536 * 1024, "1.5 MiB"),
            (1024 * MIB, "1.0 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
        for (time, shown) in [(0, "0s"), (59, "59s"), (125, "2m05s"), (12_000, "3h20m")] {
            assert_eq!(Span(seconds(time)).to_string(), shown);
        }
    }
}

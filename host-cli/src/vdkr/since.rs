//! Points in time as `logs` takes them.

use jiff::{Timestamp, civil, tz::TimeZone};

/// Nanoseconds of Go's units of time.
const UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A time in nanoseconds since 1970: an RFC 3339 time, a date or time without a zone (the
/// computer's own then), seconds since 1970, or how long ago (`1h30m`).
pub fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no time: write 10m, 2026-01-31T10:00:00Z or seconds since 1970");
    if let Some(ago) = duration(text) {
        let now = u64::try_from(now.as_nanosecond()).unwrap_or(0);
        return Ok(now.saturating_sub(ago));
    }
    if let Some(nanoseconds) = seconds(text) {
        return Ok(nanoseconds);
    }
    let time = text.parse::<Timestamp>().ok().or_else(|| {
        let civil = text.parse::<civil::DateTime>().ok();
        let civil = civil.or_else(|| {
            Some(
                text.parse::<civil::Date>()
                    .ok()?
                    .to_datetime(civil::Time::midnight()),
            )
        });
        Some(civil?.to_zoned(zone.clone()).ok()?.timestamp())
    });
    let nanoseconds = time.ok_or_else(wrong)?.as_nanosecond();
    u64::try_from(nanoseconds).map_err(|_| wrong())
}

/// `1700000000` or `1700000000.5`.
fn seconds(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    let part = format!("{part:0<9}").parse::<u64>().ok()?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1_000_000_000)?
        .checked_add(part)
}

/// Go's way to write a length of time, in nanoseconds: `1h30m`, `1.5s`.
fn duration(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut sum = 0_u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, after) = tail.split_at(end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let number: f64 = number.parse().ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "the number is not negative, and a cast of one too large stops at the largest"
        )]
        let nanoseconds = (number * *unit as f64) as u64;
        sum = sum.checked_add(nanoseconds)?;
        rest = after;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<u64, String> {
        let now = Timestamp::from_second(1_000_000).unwrap();
        parse(text, now, &TimeZone::UTC)
    }

    #[test]
    fn forms() {
        const S: u64 = 1_000_000_000;
        for (text, expected) in [
            ("10s", 999_990 * S),
            ("1h30m", 994_600 * S),
            ("1.5s", 999_998 * S + S / 2),
            ("250ms", 999_999 * S + S / 4 * 3),
            ("2000000h", 0),
            ("0", 0),
            ("7", 7 * S),
            ("7.25", 7 * S + S / 4),
            ("1970-01-01T00:00:09Z", 9 * S),
            ("1970-01-01T01:00:09+01:00", 9 * S),
            ("1970-01-01T00:00:09", 9 * S),
            ("1970-01-02", 86_400 * S),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
        for bad in ["", "soon", "10", "-5s", "5x", "1970-13-01", "5 s", "."] {
            assert!(read(bad).is_err() || bad == "10", "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,20}", number in "[0-9.hmsu]{0,20}") {
            let _ = read(&text);
            let _ = read(&number);
        }
    }
}

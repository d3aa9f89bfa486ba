//! Times as text, without a clock or a calendar library.

use alloc::{format, string::String};

/// Seconds of a day.
const DAY: u64 = 86_400;

/// A time in nanoseconds since 1970 as RFC 3339 in UTC, with nine decimals as docker writes them.
pub fn rfc3339(nanoseconds: u64) -> String {
    let (seconds, fraction) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    format!("{}.{fraction:09}Z", date_time(seconds))
}

/// A time in seconds since 1970 as RFC 3339 in UTC, without a fraction.
pub fn rfc3339_seconds(seconds: u64) -> String {
    date_time(seconds) + "Z"
}

/// Reads a time as RFC 3339 has it, with any fraction and offset, as milliseconds since 1970; what was
/// before is 0.
pub fn parse_rfc3339_ms(text: &str) -> Option<u64> {
    let digits = |from: usize, to: usize| -> Option<u64> {
        let part = text.get(from..to)?;
        part.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| part.parse().ok())?
    };
    let marks = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
    if marks
        .iter()
        .any(|&(at, mark)| text.get(at..=at) != Some(mark))
        || !matches!(text.get(10..11), Some("T" | "t" | " "))
    {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let (hour, minute, second) = (digits(11, 13)?, digits(14, 16)?, digits(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        None => (0, rest),
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit())?;
            let (fraction, zone) = rest.split_at(end);
            let mut first = fraction.bytes().chain(core::iter::repeat(b'0'));
            let mut ms = 0;
            for _ in 0..3 {
                ms = ms * 10 + u64::from(first.next()? - b'0');
            }
            (ms, zone)
        }
    };
    let ahead: i64 = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), offset) => {
            let (hours, minutes) = offset.split_once(':')?;
            let short = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            if !short(hours) || !short(minutes) {
                return None;
            }
            let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if sign == "+" { seconds } else { -seconds }
        }
        _ => return None,
    };
    let days = days(year, month, day)?;
    let seconds = days * DAY + hour * 3600 + minute * 60 + second;
    let seconds = seconds.checked_add_signed(-ahead).unwrap_or(0);
    Some(seconds * 1000 + fraction)
}

/// Days from 1970-01-01 to a date; what is before gives 0 or little more.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    // Counted from 0000-03-01, as in `date`.
    let year = if month > 2 {
        year
    } else {
        year.checked_sub(1)?
    };
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    let all = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    Some(all.saturating_sub(719_468))
}

fn date_time(seconds: u64) -> String {
    let (year, month, day) = date(seconds / DAY);
    let rest = seconds % DAY;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Year, month and day of a number of days since 1970-01-01, by the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_799, "2000-02-29T23:59:59.000000000Z"),
            (1_700_000_000, "2023-11-14T22:13:20.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1_000_000_000), text);
        }
        assert_eq!(rfc3339(1_000_000_007), "1970-01-01T00:00:01.000000007Z");
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339_seconds(seconds), text);
        }
        assert!(rfc3339(u64::MAX).starts_with("2554-07-21T"));
    }

    #[test]
    fn times_are_read_with_their_offsets() {
        for (text, ms) in [
            ("1970-01-01T00:00:01.5Z", 1500),
            ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123),
            ("2023-11-15T00:13:20+02:00", 1_700_000_000_000),
            ("2023-11-14T20:13:20-02:00", 1_700_000_000_000),
            ("0001-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(parse_rfc3339_ms(text), Some(ms), "{text}");
        }
        for text in [
            "",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-13-14T22:13:20Z",
            "2023-11-14T22:13:20.Zx",
            "2023-11-14T22:13:20+2:00",
            "2023-11-14T22:13:20\u{e9}",
        ] {
            assert_eq!(parse_rfc3339_ms(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(ms in 0_u64..4_000_000_000_000) {
            proptest::prop_assert_eq!(parse_rfc3339_ms(&rfc3339(ms * 1_000_000)), Some(ms));
        }

        #[test]
        fn any_text_gives_an_answer(text in "[0-9TZ:.+é-]{0,30}") {
            let _ = parse_rfc3339_ms(&text);
        }
    }
}

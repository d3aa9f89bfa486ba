//! Numbers and times as docker shows them, and columns.

use std::fmt::Write as _;

use crate::output::plain;

/// A size in decimal units with three digits: `4.26MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    in_units(bytes, 1000.0, UNITS, 3)
}

/// A size in binary units with four digits, as docker shows memory: `1.5GiB`.
pub fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    in_units(bytes, 1024.0, UNITS, 4)
}

/// Units are `step` times as big as the one before; zeros at the end are left out.
fn in_units(bytes: u64, step: f64, units: [&str; 7], digits: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a few digits are shown")]
    let mut value = bytes as f64;
    let mut units = units.into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= step
        && let Some(next) = units.next()
    {
        value /= step;
        unit = next;
    }
    let before_point = match value {
        value if value < 10.0 => 1,
        value if value < 100.0 => 2,
        value if value < 1000.0 => 3,
        _ => 4,
    };
    let decimals = digits.saturating_sub(before_point);
    let digits = format!("{value:.decimals$}");
    let digits = if digits.contains('.') {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        &digits
    };
    format!("{digits}{unit}")
}

/// How long ago something was: `3 weeks ago`.
pub fn ago(seconds: i64) -> String {
    format!("{} ago", duration(seconds))
}

/// A length of time: `About an hour`.
pub fn duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    let of =
        |number: i64, unit: &str| format!("{number} {unit}{}", if number == 1 { "" } else { "s" });
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1..60 => of(seconds, "second"),
        60..120 => "About a minute".to_owned(),
        120..3600 if hours < 1 || minutes < 60 => of(minutes, "minute"),
        _ => match hours {
            ..2 => "About an hour".to_owned(),
            2..48 => of(hours, "hour"),
            48..336 => of(hours / 24, "day"),
            336..1440 => of(hours / 24 / 7, "week"),
            1440..17520 => of(hours / 24 / 30, "month"),
            _ => of(hours / 24 / 365, "year"),
        },
    }
}

/// Lays rows out in columns, three blanks apart, as docker does. Others have a say in the cells: each
/// stays in its line.
pub fn columns(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| plain(cell)).collect())
        .collect();
    let rows = &rows;
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}   ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, shown) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (5_000, "5kB"),
            (4_261_550, "4.26MB"),
            (12_345_678, "12.3MB"),
            (123_456_789, "123MB"),
            (1_100_000_000, "1.1GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
    }

    #[test]
    fn binary_sizes() {
        for (bytes, shown) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (3 << 20, "3MiB"),
            (2_000_000_000, "1.863GiB"),
            (u64::MAX, "16EiB"),
        ] {
            assert_eq!(binary_size(bytes), shown);
        }
    }

    #[test]
    fn durations() {
        const HOUR: i64 = 3600;
        const DAY: i64 = 24 * HOUR;
        for (seconds, shown) in [
            (-5, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (600, "10 minutes"),
            (59 * 60, "59 minutes"),
            (HOUR, "About an hour"),
            (47 * HOUR, "47 hours"),
            (3 * DAY, "3 days"),
            (13 * DAY, "13 days"),
            (15 * DAY, "2 weeks"),
            (70 * DAY, "2 months"),
            (800 * DAY, "2 years"),
        ] {
            assert_eq!(duration(seconds), shown);
        }
    }

    #[test]
    fn a_cell_stays_in_its_line() {
        let rows = [vec!["A".to_owned()], vec!["x\u{1b}[2J\nvdkr: y".to_owned()]];
        assert_eq!(columns(&rows), "A\nx[2Jvdkr: y\n");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["A", "LONG NAME", "Z"], ["wide cell", "x", "1"]];
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(ToString::to_string).collect())
            .collect();
        assert_eq!(
            columns(&rows),
            "A           LONG NAME   Z\nwide cell   x           1\n"
        );
    }
}

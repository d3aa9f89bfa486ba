//! Signals by name or number, as Linux counts them on x86-64 and aarch64.

use alloc::string::String;

/// What a container is stopped with when neither image nor user says otherwise.
pub const TERM: u8 = 15;
/// What cannot be ignored.
pub const KILL: u8 = 9;
/// The highest signal number.
const LAST: u8 = 64;
/// The first real-time signal that programs may use.
const RTMIN: u8 = 34;

const NAMES: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// No signal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no signal; write a name such as TERM or a number from 1 to {LAST}")]
pub struct SignalError(String);

/// The number of `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`, `RTMAX-1`.
pub fn parse(text: &str) -> Result<u8, SignalError> {
    let error = || SignalError(text.chars().take(40).collect());
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text.parse().map_err(|_| error())?;
        return if (1..=LAST).contains(&number) {
            Ok(number)
        } else {
            Err(error())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest
            .strip_prefix(sign)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse::<u8>().ok()),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest, '+').and_then(|offset| RTMIN.checked_add(offset))
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest, '-').and_then(|offset| LAST.checked_sub(offset))
    } else {
        None
    };
    number
        .filter(|number| (RTMIN..=LAST).contains(number))
        .ok_or_else(error)
}

/// `SIGTERM` and so on; the number where there is no name.
pub fn name(number: u8) -> String {
    match NAMES.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => alloc::format!("SIG{name}"),
        None => alloc::format!("{number}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigterm", 15),
            ("9", 9),
            ("kill", 9),
            ("WINCH", 28),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("RTMAX-14", 50),
            ("64", 64),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for bad in [
            "", "0", "65", "-9", "+9", "SIG", "NOPE", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN++1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!((name(15).as_str(), name(40).as_str()), ("SIGTERM", "40"));
    }

    proptest! {
        #[test]
        fn what_is_read_is_a_signal(text in ".{0,12}") {
            if let Ok(number) = parse(&text) {
                prop_assert!((1..=LAST).contains(&number));
            }
        }

        #[test]
        fn every_name_comes_back(number in 1..=LAST) {
            prop_assert_eq!(parse(&name(number)), Ok(number));
        }
    }
}

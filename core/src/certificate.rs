//! What a server's certificate must say, and when it is due for a new one. Reading and signing
//! certificates is the business of those who have keys.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv6Addr};

/// Most seconds before its end that a certificate is renewed.
const RENEW_BEFORE: i64 = 30 * DAY;
/// A day, in seconds.
pub const DAY: i64 = 24 * 60 * 60;

/// A name that a certificate is for ("subject alternative name", RFC 5280 §4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AltName {
    /// A host name in lower case; the first label may be `*`.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// Why a text is no such name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AltNameError {
    /// Another kind than the two that matter here.
    #[error("{0:?}: expected DNS:NAME, IP:ADDRESS, a host name or an address")]
    Kind(String),
    /// Neither letters, digits, hyphens and dots, nor of legal length.
    #[error("{0:?} is not a host name")]
    Dns(String),
    /// No address.
    #[error("{0:?} is not an IP address")]
    Ip(String),
}

impl AltName {
    /// Reads `DNS:name`, `IP:address`, or either without its prefix. IPv6 may stand in brackets.
    pub fn parse(text: &str) -> Result<Self, AltNameError> {
        let prefixed = |prefix: &str| {
            let (head, rest) = text.split_at_checked(prefix.len())?;
            head.eq_ignore_ascii_case(prefix).then_some(rest)
        };
        if let Some(name) = prefixed("DNS:") {
            return dns(name);
        }
        if let Some(address) = prefixed("IP:") {
            return ip(address).ok_or_else(|| AltNameError::Ip(address.into()));
        }
        match ip(text) {
            Some(address) => Ok(address),
            None if text.contains(':') => Err(AltNameError::Kind(text.into())),
            None => dns(text),
        }
    }

    /// Reads a list with commas or white space between the names. Repetitions are dropped.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, AltNameError> {
        let mut names = Vec::new();
        for word in list.split(|c: char| c == ',' || c.is_ascii_whitespace()) {
            if word.is_empty() {
                continue;
            }
            let name = Self::parse(word)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }
}

impl fmt::Display for AltName {
    /// As openssl writes it: `DNS:localhost`, `IP:10.0.2.2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Ip(address) => write!(f, "IP:{address}"),
        }
    }
}

fn dns(text: &str) -> Result<AltName, AltNameError> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let plain = name.strip_prefix("*.").unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // Nobody looks a name of digits up: it was meant to be an address.
    let numeric = plain
        .rsplit('.')
        .next()
        .is_some_and(|last| !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()));
    if name.len() > 253 || numeric || !plain.split('.').all(label) {
        return Err(AltNameError::Dns(text.into()));
    }
    Ok(AltName::Dns(name.to_ascii_lowercase()))
}

fn ip(text: &str) -> Option<AltName> {
    let bracketed = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = match bracketed {
        Some(inner) => IpAddr::V6(inner.parse::<Ipv6Addr>().ok()?),
        None => text.parse().ok()?,
    };
    Some(AltName::Ip(address))
}

/// The names that are wanted and not there.
pub fn missing_names<'a>(present: &[AltName], wanted: &'a [AltName]) -> Vec<&'a AltName> {
    wanted
        .iter()
        .filter(|name| !present.contains(name))
        .collect()
}

/// When something holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: i64,
    /// The last second.
    pub not_after: i64,
}

impl Validity {
    /// Whether it holds at `now`.
    pub fn holds(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// Whether a certificate should be replaced at `now`: it does not hold, or less than a third of
    /// its time and less than 30 days are left.
    pub fn renewal_due(&self, now: i64) -> bool {
        let third = self.not_after.saturating_sub(self.not_before) / 3;
        let left = self.not_after.saturating_sub(now);
        !self.holds(now) || left < third.min(RENEW_BEFORE)
    }

    /// Whole days left at `now`; negative when it has ended.
    pub fn days_left(&self, now: i64) -> i64 {
        self.not_after.saturating_sub(now).div_euclid(DAY)
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_with_and_without_prefix() {
        for (text, expected) in [
            ("DNS:Build.Example.com", "DNS:build.example.com"),
            ("dns:localhost", "DNS:localhost"),
            ("build_host.", "DNS:build_host"),
            ("*.lab.example", "DNS:*.lab.example"),
            ("IP:10.0.2.2", "IP:10.0.2.2"),
            ("10.0.2.2", "IP:10.0.2.2"),
            ("::1", "IP:::1"),
            ("[fd00::1]", "IP:fd00::1"),
            ("IP:[FD00:0::1]", "IP:fd00::1"),
        ] {
            assert_eq!(
                AltName::parse(text).unwrap().to_string(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn other_kinds_and_nonsense_are_refused() {
        for text in [
            "",
            "DNS:",
            "IP:",
            "IP:localhost",
            "DNS:a b",
            "email:me@example.com",
            "URI:https://x",
            "a..b",
            "-a",
            "a-",
            "10.0.2",
            "10.0.2.256",
            "a.*.b",
            "*",
            "host:5000",
            "[10.0.2.2]",
            "über.example",
            &"a".repeat(64),
            &format!("{}a", "a.".repeat(127)),
        ] {
            assert!(AltName::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_list_has_each_name_once() {
        let names = AltName::parse_list("DNS:a, IP:1.2.3.4 a\n1.2.3.4,,b").unwrap();
        let text: Vec<_> = names.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["DNS:a", "IP:1.2.3.4", "DNS:b"]);
        assert!(AltName::parse_list("a,email:x").is_err());
        assert_eq!(AltName::parse_list(" ,").unwrap(), []);
        let wanted = AltName::parse_list("b c").unwrap();
        assert_eq!(missing_names(&names, &wanted), [&wanted[1]]);
    }

    #[test]
    fn renewal_is_due_in_the_last_third_and_the_last_month() {
        let year = Validity {
            not_before: 0,
            not_after: 365 * DAY,
        };
        let two_days = Validity {
            not_before: 0,
            not_after: 2 * DAY,
        };
        for (validity, now, due) in [
            (year, 0, false),
            (year, 334 * DAY, false),
            (year, 336 * DAY, true),
            (year, 366 * DAY, true),
            (year, -1, true),
            (two_days, DAY, false),
            (two_days, 3 * DAY / 2, true),
        ] {
            assert_eq!(validity.renewal_due(now), due, "{validity:?} at {now}");
        }
        assert_eq!(year.days_left(DAY), 364);
        assert_eq!(year.days_left(366 * DAY), -1);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = AltName::parse(&text);
            let _ = AltName::parse_list(&text);
        }

        #[test]
        fn what_is_written_is_read(text in "([A-Za-z0-9-]{1,8}\\.){0,3}[a-z]{1,8}|[0-9]{1,3}(\\.[0-9]{1,3}){3}|([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}") {
            if let Ok(name) = AltName::parse(&text) {
                prop_assert_eq!(AltName::parse(&name.to_string()).unwrap(), name);
            }
        }

        #[test]
        fn any_time_can_be_asked_about(not_before: i64, not_after: i64, now: i64) {
            let validity = Validity { not_before, not_after };
            let due = validity.renewal_due(now);
            prop_assert!(due || validity.holds(now));
            let _ = validity.days_left(now);
        }
    }
}

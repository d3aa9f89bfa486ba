//! Which tags a clean-up keeps: the decision behind `container-registry prune`.
//!
//! A tag is kept when any rule keeps it. What has no known age is kept, and so is the newest tag of a
//! repository that would lose all of them, unless that is asked for.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::digest::Digest;

/// Longest pattern in bytes: longer than any tag with a namespace.
const MAX_PATTERN: usize = 512;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many images, tags of one digest counting as one.
    pub keep_last: Option<usize>,
    /// What is younger than so many seconds.
    pub younger_than: Option<u64>,
    /// Tags that match one of these.
    pub keep: Vec<Pattern>,
    /// The tags that are judged at all; empty stands for every tag.
    pub only: Vec<Pattern>,
    /// Whether a repository may lose its last tag.
    pub may_empty: bool,
}

impl Policy {
    /// Whether there is a rule that keeps something; without one everything would go.
    pub fn has_rule(&self) -> bool {
        self.keep_last.is_some() || self.younger_than.is_some() || !self.keep.is_empty()
    }
}

/// One tag of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The tag.
    pub tag: String,
    /// What it points to.
    pub digest: Digest,
    /// When it was pushed, in seconds since the epoch.
    pub time: Option<u64>,
    /// Nanoseconds beyond that; builds push several images within a second.
    pub nanos: u32,
    /// Whether its digest is pinned.
    pub pinned: bool,
}

/// Seconds, if they are known, and nanoseconds.
type Moment = (Option<u64>, u32);

impl Candidate {
    fn moment(&self) -> Moment {
        (self.time, self.nanos)
    }
}

/// Why a tag stays or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Kept: no pattern of [`Policy::only`] matches it.
    OutOfScope,
    /// Kept: its digest is pinned.
    Pinned,
    /// Kept: a pattern matches it.
    Matches,
    /// Kept: nobody knows how old it is.
    UnknownAge,
    /// Kept: one of the newest; its place from 1.
    Recent {
        /// Place in the order of age, twins sharing one.
        place: usize,
    },
    /// Kept: young enough.
    Young {
        /// Age in seconds.
        age: u64,
    },
    /// Kept: the repository would have no tag left.
    LastTag,
    /// Goes: no rule keeps it.
    Expired {
        /// Place in the order of age.
        place: usize,
        /// Age in seconds.
        age: u64,
    },
}

impl Verdict {
    /// Whether the tag stays.
    pub fn keeps(self) -> bool {
        !matches!(self, Self::Expired { .. })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfScope => f.write_str("not matched by --match"),
            Self::Pinned => f.write_str("its digest is pinned"),
            Self::Matches => f.write_str("matches --keep"),
            Self::UnknownAge => f.write_str("its age is unknown"),
            Self::Recent { place } => write!(f, "number {place} of the newest"),
            Self::Young { age } => write!(f, "{} old", Age(*age)),
            Self::LastTag => f.write_str("the repository would have no tag left"),
            Self::Expired { place, age } => {
                write!(f, "number {place}, {} old, kept by no rule", Age(*age))
            }
        }
    }
}

/// Judges the tags of one repository. The verdicts are in the order of the tags.
pub fn decide(policy: &Policy, tags: &[Candidate], now: u64) -> Vec<Verdict> {
    let mut verdicts: Vec<_> = tags.iter().map(|_| Verdict::OutOfScope).collect();
    let judged = |tag: &Candidate| {
        policy.only.is_empty() || policy.only.iter().any(|pattern| pattern.matches(&tag.tag))
    };
    // Newest first; the name decides between equals, so that the answer does not depend on the order
    // that a registry lists them in.
    let mut order: Vec<usize> = (0..tags.len()).filter(|&at| judged(&tags[at])).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&tags[a], &tags[b]);
        b.moment().cmp(&a.moment()).then_with(|| a.tag.cmp(&b.tag))
    });
    // Images with the time of their newest tag and their place; what came at the same time has the same
    // place, because nobody knows which of it is newer.
    let mut images: Vec<(&Digest, Moment, usize)> = Vec::new();
    for &at in &order {
        let tag = &tags[at];
        let known = images.iter().find(|(digest, ..)| **digest == tag.digest);
        let place = if let Some((_, _, place)) = known {
            *place
        } else {
            let place = match images.last() {
                Some((_, time, place)) if *time == tag.moment() => *place,
                _ => images.len() + 1,
            };
            images.push((&tag.digest, tag.moment(), place));
            place
        };
        let age = tag.time.map(|time| now.saturating_sub(time));
        verdicts[at] = match age {
            _ if tag.pinned => Verdict::Pinned,
            _ if policy.keep.iter().any(|pattern| pattern.matches(&tag.tag)) => Verdict::Matches,
            None => Verdict::UnknownAge,
            Some(_) if policy.keep_last.is_some_and(|last| place <= last) => {
                Verdict::Recent { place }
            }
            Some(age) if policy.younger_than.is_some_and(|limit| age < limit) => {
                Verdict::Young { age }
            }
            Some(age) => Verdict::Expired { place, age },
        };
    }
    if !policy.may_empty
        && !verdicts.iter().any(|verdict| verdict.keeps())
        && let Some(&newest) = order.first()
    {
        verdicts[newest] = Verdict::LastTag;
    }
    verdicts
}

/// A pattern for names: `*` stands for any characters, `?` for one; everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing is matched by it.
    #[error("a pattern must not be empty")]
    Empty,
    /// Too long to match any name.
    #[error("a pattern has at most {MAX_PATTERN} bytes")]
    TooLong,
    /// A character that no name has.
    #[error(
        "a pattern holds the characters of names, '*' and '?' only (byte {offset}); \
         classes such as [0-9] are not known"
    )]
    Character {
        /// Byte offset of the first one.
        offset: usize,
    },
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/*?".contains(&byte);
        match text.bytes().position(|byte| !legal(byte)) {
            Some(offset) => Err(PatternError::Character { offset }),
            None => Ok(Self(text.into())),
        }
    }

    /// Whether the whole name matches. Takes at most time proportional to both lengths multiplied.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where to go on when the text after the last `*` turns out not to fit.
        let mut retry: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p + 1, n));
                    p += 1;
                }
                Some(&byte) if byte == b'?' || byte == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match retry {
                    Some((after, from)) => {
                        p = after;
                        n = from + 1;
                        retry = Some((after, n));
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a length of time is a number with a unit: 90s, 30m, 1h, 7d, 2w")]
pub struct AgeError;

/// Reads a length of time in seconds: `90s`, `30m`, `1h`, `7d`, `2w`, several together (`1h30m`), or
/// `0`.
pub fn parse_age(text: &str) -> Result<u64, AgeError> {
    if text == "0" {
        return Ok(0);
    }
    let mut total = 0_u64;
    let mut rest = text;
    if rest.is_empty() {
        return Err(AgeError);
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| AgeError)?;
        let unit = rest.as_bytes().get(digits).ok_or(AgeError)?;
        let seconds = match unit {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return Err(AgeError),
        };
        total = number
            .checked_mul(seconds)
            .and_then(|part| total.checked_add(part))
            .ok_or(AgeError)?;
        rest = &rest[digits + 1..];
    }
    Ok(total)
}

/// A length of time in seconds, shown with its two largest units: `1h30m`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age(pub u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];
        let mut rest = self.0;
        let mut shown = 0;
        for (seconds, unit) in UNITS {
            let number = rest / seconds;
            rest %= seconds;
            if number > 0 && shown < 2 {
                write!(f, "{number}{unit}")?;
            }
            if number > 0 || shown > 0 {
                shown += 1;
            }
        }
        if shown == 0 {
            f.write_str("0s")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString as _;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400;
    const NOW: u64 = 1000 * DAY;

    fn tag(name: &str, content: u8, days: u64) -> Candidate {
        Candidate {
            tag: name.into(),
            digest: Digest::sha256(&[content]),
            time: Some(NOW - days * DAY),
            nanos: 0,
            pinned: false,
        }
    }

    fn kept(policy: &Policy, tags: &[Candidate]) -> Vec<String> {
        decide(policy, tags, NOW)
            .into_iter()
            .zip(tags)
            .filter(|(verdict, _)| verdict.keeps())
            .map(|(_, tag)| tag.tag.clone())
            .collect()
    }

    #[test]
    fn the_newest_images_stay_with_their_twins() {
        let tags = [
            tag("20260101-000000", 1, 9),
            tag("20260102-000000", 2, 8),
            tag("20260103-000000", 3, 7),
            tag("latest", 3, 7),
        ];
        let policy = Policy {
            keep_last: Some(2),
            ..Policy::default()
        };
        assert_eq!(
            kept(&policy, &tags),
            ["20260102-000000", "20260103-000000", "latest"]
        );
    }

    #[test]
    fn what_came_within_one_second_is_told_apart_and_what_came_at_once_stays_together() {
        let policy = Policy {
            keep_last: Some(1),
            ..Policy::default()
        };
        let mut tags = [tag("a", 1, 5), tag("b", 2, 5), tag("c", 3, 5)];
        assert_eq!(kept(&policy, &tags), ["a", "b", "c"], "who knows");
        (tags[1].nanos, tags[2].nanos) = (900, 900);
        assert_eq!(kept(&policy, &tags), ["b", "c"]);
        tags[2].nanos = 901;
        assert_eq!(kept(&policy, &tags), ["c"]);
        // The place counts all that is newer.
        let verdicts = decide(&policy, &tags, NOW);
        assert!(matches!(verdicts[0], Verdict::Expired { place: 3, .. }));
    }

    #[test]
    fn any_rule_keeps() {
        let tags = [
            tag("a", 1, 1),
            tag("b", 2, 10),
            tag("v1.0", 3, 100),
            tag("c", 4, 50),
        ];
        let policy = Policy {
            keep_last: Some(1),
            younger_than: Some(20 * DAY),
            keep: vec![Pattern::parse("v*").unwrap()],
            ..Policy::default()
        };
        assert_eq!(kept(&policy, &tags), ["a", "b", "v1.0"]);
        let verdicts = decide(&policy, &tags, NOW);
        assert_eq!(verdicts[0], Verdict::Recent { place: 1 });
        assert_eq!(verdicts[1], Verdict::Young { age: 10 * DAY });
        assert_eq!(verdicts[2], Verdict::Matches);
        assert_eq!(
            verdicts[3].to_string(),
            "number 3, 50d old, kept by no rule"
        );
    }

    #[test]
    fn the_last_tag_and_what_is_pinned_or_of_unknown_age_stay() {
        let mut policy = Policy {
            younger_than: Some(DAY),
            ..Policy::default()
        };
        let mut tags = [tag("old", 1, 30), tag("newer", 2, 20)];
        assert_eq!(kept(&policy, &tags), ["newer"]);
        policy.may_empty = true;
        assert!(kept(&policy, &tags).is_empty());
        tags[0].pinned = true;
        assert_eq!(kept(&policy, &tags), ["old"]);
        tags[1].time = None;
        assert_eq!(kept(&policy, &tags), ["old", "newer"]);
    }

    #[test]
    fn what_is_not_matched_is_not_judged() {
        let policy = Policy {
            keep_last: Some(0),
            only: vec![Pattern::parse("nightly-*").unwrap()],
            ..Policy::default()
        };
        let tags = [tag("nightly-1", 1, 3), tag("v1", 2, 300)];
        assert_eq!(kept(&policy, &tags), ["v1"]);
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, matches) in [
            ("v*", "v1.0", true),
            ("v*", "rv1", false),
            ("*", "", true),
            ("?", "", false),
            ("a?c", "abc", true),
            ("*-arm64", "latest-arm64", true),
            ("*a*b*", "xaxbx", true),
            ("*a*b*", "xbxax", false),
            ("yocto/*", "yocto/app", true),
            ("latest", "latest", true),
        ] {
            assert_eq!(
                Pattern::parse(pattern).unwrap().matches(name),
                matches,
                "{pattern} {name}"
            );
        }
        assert_eq!(
            Pattern::parse("v[0-9]"),
            Err(PatternError::Character { offset: 1 })
        );
        assert!(Pattern::parse("").is_err());
        // A pattern that would take ages when every star were tried against every place.
        let evil = Pattern::parse(&"*a".repeat(100)).unwrap();
        assert!(!evil.matches(&format!("{}b", "a".repeat(127))));
    }

    #[test]
    fn lengths_of_time() {
        for (text, seconds) in [
            ("0", 0),
            ("90s", 90),
            ("1h", 3600),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("2w", 1_209_600),
        ] {
            assert_eq!(parse_age(text), Ok(seconds), "{text}");
        }
        for bad in ["", "1", "h", "-1h", "1y", "1h ", "99999999999999999999s"] {
            assert_eq!(parse_age(bad), Err(AgeError), "{bad}");
        }
        assert_eq!(Age(5400).to_string(), "1h30m");
        assert_eq!(Age(604_800).to_string(), "7d");
        assert_eq!(Age(90_061).to_string(), "1d1h");
        assert_eq!(Age(0).to_string(), "0s");
    }

    proptest! {
        #[test]
        fn patterns_agree_with_a_simple_matcher(pattern in "[ab*?]{1,8}", name in "[ab]{0,8}") {
            fn simple(pattern: &[u8], name: &[u8]) -> bool {
                match (pattern.first(), name.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => {
                        simple(&pattern[1..], name) || (!name.is_empty() && simple(pattern, &name[1..]))
                    }
                    (Some(b'?'), Some(_)) => simple(&pattern[1..], &name[1..]),
                    (Some(p), Some(n)) if p == n => simple(&pattern[1..], &name[1..]),
                    _ => false,
                }
            }
            let expected = simple(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(Pattern::parse(&pattern).unwrap().matches(&name), expected);
        }

        #[test]
        fn any_text_is_a_pattern_or_not(text in ".{0,40}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                let _ = pattern.matches(&text);
            }
        }

        #[test]
        fn any_text_is_an_age_or_not(text in "[0-9smhdw]{0,12}") {
            if let Ok(age) = parse_age(&text) {
                // Shown with two units, it is never more than what was read.
                prop_assert!(parse_age(&Age(age).to_string()).unwrap() <= age);
            }
        }

        #[test]
        fn a_repository_keeps_a_tag_and_rules_only_ever_keep_more(
            ages in proptest::collection::vec((0_u8..4, 0_u64..50), 1..12),
            keep_last in proptest::option::of(0_usize..5),
            younger in proptest::option::of(0_u64..60),
        ) {
            let tags: Vec<_> = ages
                .iter()
                .enumerate()
                .map(|(at, (content, days))| tag(&format!("t{at}"), *content, *days))
                .collect();
            let policy = Policy { keep_last, younger_than: younger.map(|days| days * DAY), ..Policy::default() };
            let verdicts = decide(&policy, &tags, NOW);
            prop_assert!(verdicts.iter().any(|verdict| verdict.keeps()));
            let more = Policy { keep: vec![Pattern::parse("t1*").unwrap()], ..policy };
            for (less, more) in verdicts.iter().zip(decide(&more, &tags, NOW)) {
                prop_assert!(!less.keeps() || more.keeps() || *less == Verdict::LastTag);
            }
        }
    }
}

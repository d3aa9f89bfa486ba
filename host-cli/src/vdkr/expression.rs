//! Regular expressions of filters, as far as people write them for names: characters, `.`, `[…]`,
//! `*`, `+`, `?`, `|`, and `^` and `$` at the ends. Anything else is refused rather than taken for
//! something that it is not.

/// Longest expression, in bytes.
const MAX_LENGTH: usize = 1024;

/// An expression that can be looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    alternatives: Vec<Alternative>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Alternative {
    from_start: bool,
    to_end: bool,
    parts: Vec<(Atom, Times)>,
}

/// What one character has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Atom {
    Any,
    One(char),
    /// One of these ranges, or none of them.
    Of(Vec<(char, char)>, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Times {
    Once,
    /// Once or not at all.
    Maybe,
    /// As often as there is something.
    Any,
}

impl Atom {
    fn fits(&self, c: char) -> bool {
        match self {
            Self::Any => true,
            Self::One(own) => *own == c,
            Self::Of(ranges, wanted) => {
                let found = ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&c));
                found == *wanted
            }
        }
    }
}

impl Expression {
    /// Reads one, or says what of it is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err("the expression is too long".to_owned());
        }
        let mut alternatives = vec![Alternative::default()];
        let mut rest = text.chars().peekable();
        let mut at_start = true;
        while let (Some(c), Some(own)) = (rest.next(), alternatives.last_mut()) {
            if own.to_end && c != '|' {
                return Err("$ is understood at the end alone".to_owned());
            }
            let starts = std::mem::replace(&mut at_start, false);
            let atom = match c {
                '^' if starts => {
                    own.from_start = true;
                    continue;
                }
                '$' => {
                    own.to_end = true;
                    continue;
                }
                '|' => {
                    alternatives.push(Alternative::default());
                    at_start = true;
                    continue;
                }
                '*' | '+' | '?' => return Err(format!("nothing stands before {c} to be repeated")),
                '.' => Atom::Any,
                '[' => set(&mut rest)?,
                '\\' => match rest.next() {
                    Some(c) if c.is_ascii_punctuation() => Atom::One(c),
                    Some(c) => return Err(format!("\\{c} is not understood")),
                    None => return Err("nothing follows the \\ at the end".to_owned()),
                },
                '^' | '(' | ')' | '{' | '}' | ']' => {
                    return Err(format!(
                        "{c} is not understood here; there are . [] * + ? | and ^ and $ at the \
                         ends, and \\{c} for the character itself"
                    ));
                }
                c => Atom::One(c),
            };
            let times = rest.next_if(|c| matches!(c, '*' | '+' | '?'));
            if times.is_some() && rest.peek().is_some_and(|c| matches!(c, '*' | '+' | '?')) {
                return Err("two repetitions stand behind each other".to_owned());
            }
            match times {
                None => own.parts.push((atom, Times::Once)),
                Some('?') => own.parts.push((atom, Times::Maybe)),
                Some('+') => {
                    own.parts.push((atom.clone(), Times::Once));
                    own.parts.push((atom, Times::Any));
                }
                Some(_) => own.parts.push((atom, Times::Any)),
            }
        }
        Ok(Self { alternatives })
    }

    /// Whether it is found in a text.
    pub fn is_in(&self, text: &str) -> bool {
        self.alternatives.iter().any(|own| own.is_in(text))
    }
}

impl Alternative {
    /// Goes through the text once, with every place of the expression that may have been reached.
    fn is_in(&self, text: &str) -> bool {
        let end = self.parts.len();
        let mut reached = vec![false; end + 1];
        reached[0] = true;
        self.skip(&mut reached);
        for c in text.chars() {
            if reached[end] && !self.to_end {
                return true;
            }
            let mut next = vec![false; end + 1];
            for (at, (atom, times)) in self.parts.iter().enumerate() {
                if reached[at] && atom.fits(c) {
                    next[if *times == Times::Any { at } else { at + 1 }] = true;
                }
            }
            next[0] |= !self.from_start;
            self.skip(&mut next);
            reached = next;
        }
        reached[end]
    }

    /// What need not be there is passed over.
    fn skip(&self, reached: &mut [bool]) {
        for (at, (_, times)) in self.parts.iter().enumerate() {
            if reached[at] && *times != Times::Once {
                reached[at + 1] = true;
            }
        }
    }
}

/// What follows a `[`.
fn set(rest: &mut impl Iterator<Item = char>) -> Result<Atom, String> {
    let unfinished = || "a [ has no ]".to_owned();
    let mut next = || rest.next().ok_or_else(unfinished);
    let mut ranges: Vec<(char, char)> = Vec::new();
    let mut c = next()?;
    let wanted = c != '^';
    if !wanted {
        c = next()?;
    }
    // As everywhere, a ] that comes first is one of the set.
    let mut first = true;
    loop {
        let own = match c {
            ']' if !first => return Ok(Atom::Of(ranges, wanted)),
            '[' => return Err("a [ within [] is not understood".to_owned()),
            '\\' => next().and_then(|c| match c.is_ascii_punctuation() {
                true => Ok(c),
                false => Err(format!("\\{c} is not understood")),
            })?,
            c => c,
        };
        first = false;
        c = next()?;
        if c != '-' {
            ranges.push((own, own));
            continue;
        }
        c = next()?;
        if c == ']' {
            ranges.extend([(own, own), ('-', '-')]);
            continue;
        }
        if matches!(c, '\\' | '[') || c < own {
            return Err(format!("{own}-{c} is no range of characters"));
        }
        ranges.push((own, c));
        c = next()?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(expression: &str, text: &str) -> bool {
        Expression::parse(expression).unwrap().is_in(text)
    }

    #[test]
    fn what_people_write_for_names() {
        for (expression, hits, misses) in [
            ("web", &["web", "my-web-1"][..], &["we", "WEB"][..]),
            ("^web$", &["web"], &["web1", "a-web", ""]),
            ("^web", &["web1"], &["a-web"]),
            ("web$", &["a-web"], &["web1"]),
            (
                "^web-[0-9]+$",
                &["web-1", "web-42"],
                &["web-", "web-x", "web-1x"],
            ),
            ("^web.*db$", &["webdb", "web-1-db"], &["web-db-1"]),
            ("w.b", &["web", "a-w_b"], &["wb"]),
            ("^a-?b$", &["ab", "a-b"], &["a--b"]),
            ("^[^a-c]*$", &["", "xyz"], &["xaz"]),
            ("^web$|^db$", &["web", "db"], &["webdb"]),
            ("^a\\.b$", &["a.b"], &["a-b"]),
            ("[]x]", &["]", "x"], &["y"]),
            ("^[a-]+$", &["a-a"], &["b"]),
            ("", &["", "anything"], &[]),
            ("^$", &[""], &["a"]),
            ("a|", &["b"], &[]),
        ] {
            for text in hits {
                assert!(found(expression, text), "{expression} in {text}");
            }
            for text in misses {
                assert!(!found(expression, text), "{expression} not in {text}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (expression, word) in [
            ("(a|b)", "("),
            ("a{2}", "{"),
            ("*a", "before *"),
            ("^+", "before +"),
            ("a**", "behind each other"),
            ("a+?", "behind each other"),
            ("\\d", "\\d"),
            ("a\\", "\\"),
            ("[a", "no ]"),
            ("[", "no ]"),
            ("[z-a]", "z-a"),
            ("[[:digit:]]", "within []"),
            ("a^b", "^"),
            ("a$b", "$"),
            ("a]", "]"),
        ] {
            let error = Expression::parse(expression).unwrap_err();
            assert!(error.contains(word), "{expression}: {error}");
        }
        assert!(Expression::parse(&"a".repeat(MAX_LENGTH + 1)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(
            text in r"(?s).{0,30}|[\^$.*+?|\[\]\\a-c-]{0,20}",
            name in "[a-c.-]{0,20}",
        ) {
            if let Ok(expression) = Expression::parse(&text) {
                expression.is_in(&name);
            }
        }

        #[test]
        fn plain_characters_are_parts_of_names(part in "[a-z0-9_-]{0,8}", name in "[a-z0-9_-]{0,12}") {
            prop_assert_eq!(found(&part, &name), name.contains(&part));
            prop_assert_eq!(found(&format!("^{part}"), &name), name.starts_with(&part));
            prop_assert_eq!(found(&format!("{part}$"), &name), name.ends_with(&part));
            prop_assert_eq!(found(&format!("^{part}$"), &name), name == part);
            let around = format!("{name}{part}{name}");
            prop_assert!(found(&part, &around));
        }

        #[test]
        fn repetitions_are_those_of_a_simple_search(a in 0..4_usize, b in 0..4_usize) {
            let text = format!("{}{}", "a".repeat(a), "b".repeat(b));
            prop_assert!(found("^a*b*$", &text));
            prop_assert_eq!(found("^a+b+$", &text), a > 0 && b > 0);
            prop_assert_eq!(found("^a?b?$", &text), a < 2 && b < 2);
            prop_assert_eq!(found("^[ab]b*$", &text), a + b > 0 && a < 2);
        }
    }
}

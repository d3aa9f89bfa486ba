//! The keys by which a user leaves a container that goes on.

use alloc::{string::String, vec::Vec};

/// What docker has them be.
pub const DEFAULT: &str = "ctrl-p,ctrl-q";
/// Most keys.
const MAX_KEYS: usize = 32;

/// A text that names no keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no key to detach with; write single characters and ctrl-LETTER (or ctrl- and one of \
     @[]\\^_), with commas between them"
)]
pub struct DetachKeysError(String);

/// Keys, pressed one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// Reads keys as docker writes them; no text is no keys.
    pub fn parse(text: &str) -> Result<Self, DetachKeysError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let wrong = |key: &str| DetachKeysError(key.into());
        let keys: Vec<u8> = text
            .split(',')
            .map(|key| read_key(key).ok_or_else(|| wrong(key)))
            .collect::<Result<_, _>>()?;
        match keys.len() {
            1..=MAX_KEYS => Ok(Self(keys)),
            _ => Err(wrong(text)),
        }
    }
}

fn read_key(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [key] if key.is_ascii_graphic() || *key == b' ' => Some(*key),
        bytes => match bytes.strip_prefix(b"ctrl-")? {
            [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
            [letter @ (b'@' | b'['..=b'_')] => Some(letter - b'@'),
            _ => None,
        },
    }
}

/// Watches what a user types for the keys.
#[derive(Clone, Debug)]
pub struct DetachWatch {
    keys: DetachKeys,
    /// How many of the keys have come.
    matched: usize,
}

impl DetachWatch {
    /// Watches for these keys.
    pub fn new(keys: DetachKeys) -> Self {
        Self { keys, matched: 0 }
    }

    /// Takes what was typed and appends to `out` what is for the container: all but keys that may
    /// still become the end. `true` when all keys have come; what follows them is nobody's.
    pub fn push(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        let keys = &self.keys.0;
        if keys.is_empty() {
            out.extend_from_slice(typed);
            return false;
        }
        for &byte in typed {
            while byte != keys[self.matched] && self.matched > 0 {
                // A later key may have begun the row anew.
                let held = &keys[..self.matched];
                let longest = (0..self.matched)
                    .rev()
                    .find(|&length| held.ends_with(&keys[..length]));
                let longest = longest.unwrap_or(0);
                out.extend_from_slice(&held[..self.matched - longest]);
                self.matched = longest;
            }
            if byte != keys[self.matched] {
                out.push(byte);
                continue;
            }
            self.matched += 1;
            if self.matched == keys.len() {
                self.matched = 0;
                return true;
            }
        }
        false
    }

    /// What was held back, when nothing more is typed.
    pub fn rest(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.keys.0[..self.matched]);
        self.matched = 0;
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_as_docker_writes_them() {
        let keys = |text| DetachKeys::parse(text).unwrap().0;
        assert_eq!(keys(DEFAULT), [16, 17]);
        assert_eq!(keys("a"), *b"a");
        assert_eq!(keys("ctrl-a,a,ctrl-@,ctrl-[,ctrl-_"), [1, b'a', 0, 27, 31]);
        assert!(keys("").is_empty());
        for wrong in [
            "ctrl-",
            "ctrl-A",
            "ctrl-1",
            "ab",
            ",",
            "a,",
            "ctrl-p,,q",
            "ä",
            "\n",
        ] {
            assert!(DetachKeys::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(DetachKeys::parse(&vec!["a"; 33].join(",")).is_err());
    }

    /// What is passed on of all pieces, and whether the keys came.
    fn watch(keys: &[u8], pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut watch = DetachWatch::new(DetachKeys(keys.to_vec()));
        let mut out = Vec::new();
        for piece in pieces {
            if watch.push(piece, &mut out) {
                return (out, true);
            }
        }
        watch.rest(&mut out);
        (out, false)
    }

    #[test]
    fn keys_are_seen_however_they_come() {
        let end = |text: &[u8]| (text.to_vec(), true);
        assert_eq!(watch(&[16, 17], &[b"ab\x10\x11cd"]), end(b"ab"));
        assert_eq!(watch(&[16, 17], &[b"ab\x10", b"\x11"]), end(b"ab"));
        assert_eq!(watch(&[16, 17], &[b"\x10\x10\x11"]), end(b"\x10"));
        assert_eq!(watch(b"aab", &[b"aaab"]), end(b"a"));
        assert_eq!(watch(b"abac", &[b"ababac"]), end(b"ab"));
        assert_eq!(
            watch(&[16, 17], &[b"\x10x\x10"]),
            (b"\x10x\x10".to_vec(), false)
        );
    }

    proptest! {
        /// What is passed on is what was typed before the keys came for the first time.
        #[test]
        fn all_but_the_keys_is_passed_on(
            keys in proptest::collection::vec(0..3u8, 0..5),
            pieces in proptest::collection::vec(proptest::collection::vec(0..3u8, 0..9), 0..9),
        ) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let typed = pieces.concat();
            let first = (!keys.is_empty())
                .then(|| typed.windows(keys.len()).position(|part| part == keys))
                .flatten();
            let expected = match first {
                Some(at) => (typed[..at].to_vec(), true),
                None => (typed, false),
            };
            prop_assert_eq!(watch(&keys, &pieces), expected);
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = DetachKeys::parse(&text);
        }
    }
}

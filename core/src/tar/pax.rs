//! Extended header records (POSIX.1-2001 pax).
//!
//! A body of records is a run of `LENGTH KEY=VALUE\n`, the length counting itself. Anything else in
//! it is an error: a reader that skips a record it cannot read may skip the one that sets the size.

use alloc::{string::ToString as _, vec::Vec};

/// What is wrong with a body of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaxError {
    /// A record is not `LENGTH KEY=VALUE\n`.
    #[error("an extended header record is malformed")]
    Record,
    /// A value does not parse, or is out of its range.
    #[error("the extended header's {0} has a bad value")]
    Value(&'static str),
    /// A key that decides what is read is given twice with different values.
    #[error("the extended header gives {0} twice")]
    Repeated(&'static str),
    /// A global header sets what must be set for each member on its own.
    #[error("a global extended header may not set {0}")]
    Global(&'static str),
    /// More of something than any member has: what, and how many are allowed.
    #[error("the extended header has more than {1} {0}")]
    TooMany(&'static str, usize),
}

/// Iterates over the records of `body` as (key, value).
pub fn records(mut body: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), PaxError>> {
    core::iter::from_fn(move || {
        if body.is_empty() {
            return None;
        }
        let record = record(body);
        body = match &record {
            Ok((_, _, rest)) => rest,
            Err(_) => &[],
        };
        Some(record.map(|(key, value, _)| (key, value)))
    })
}

/// The first record's key and value, and what follows it.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn record(body: &[u8]) -> Result<Record<'_>, PaxError> {
    let space = body
        .iter()
        .take(20)
        .position(|&byte| byte == b' ')
        .ok_or(PaxError::Record)?;
    let length: usize = decimal(&body[..space])
        .and_then(|n| n.try_into().ok())
        .ok_or(PaxError::Record)?;
    if length <= space + 1 || length > body.len() || body[length - 1] != b'\n' {
        return Err(PaxError::Record);
    }
    let text = &body[space + 1..length - 1];
    let equals = text
        .iter()
        .position(|&byte| byte == b'=')
        .ok_or(PaxError::Record)?;
    if equals == 0 || text[..equals].contains(&0) {
        return Err(PaxError::Record);
    }
    Ok((&text[..equals], &text[equals + 1..], &body[length..]))
}

/// Adds a record to a body.
pub fn push(body: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // A space, an equals sign and a line feed besides the length, which counts itself.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    body.extend_from_slice(length.to_string().as_bytes());
    body.push(b' ');
    body.extend_from_slice(key);
    body.push(b'=');
    body.extend_from_slice(value);
    body.push(b'\n');
}

/// Digits only: no sign, no space.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_come_one_after_another() {
        let found: Result<Vec<_>, _> = records(b"6 a=b\n12 path=x y\n").collect();
        let expected: [(&[u8], &[u8]); 2] = [(b"a", b"b"), (b"path", b"x y")];
        assert_eq!(found.unwrap(), expected);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pairs in prop::collection::vec(
            ("[a-z.]{1,40}", prop::collection::vec(any::<u8>(), 0..1100)), 0..4,
        )) {
            let mut body = Vec::new();
            for (key, value) in &pairs {
                push(&mut body, key.as_bytes(), value);
            }
            let read: Vec<_> = records(&body).map(Result::unwrap).collect();
            let expected: Vec<_> = pairs.iter().map(|(k, v)| (k.as_bytes(), v.as_slice())).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_body_gives_an_answer(body in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(records(&body).count() <= body.len());
        }
    }
}

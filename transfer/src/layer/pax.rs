//! Extended header records (POSIX.1-2001 pax; `SCHILY.xattr.*` and `GNU.sparse.*` of star and GNU tar).
//!
//! A body of records is a run of `LENGTH KEY=VALUE\n`, the length counting itself. Anything else in
//! it is an error: a reader that skips a record it cannot read may skip the one that sets the size.

use std::collections::BTreeSet;

use vdkr_core::tar::pax::decimal;
pub use vdkr_core::tar::pax::{PaxError, records};

use super::sparse::Segment;

/// Most `SCHILY.xattr.*` records of one member. File systems take some dozens; every one costs whoever
/// sets them a look at all others.
const MAX_XATTRS: usize = 1024;

/// A time stamp: seconds since 1970 and nanoseconds (0 to 999,999,999) after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds on top.
    pub nanos: u32,
}

/// What the extended headers before a member say about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// `path`: the member's name.
    pub path: Option<Vec<u8>>,
    /// `linkpath`: the target of a link.
    pub linkpath: Option<Vec<u8>>,
    /// `size`: bytes of data stored in the archive.
    pub size: Option<u64>,
    /// `uid`.
    pub uid: Option<u64>,
    /// `gid`.
    pub gid: Option<u64>,
    /// `mtime`.
    pub mtime: Option<Time>,
    /// `SCHILY.xattr.NAME`, in order, the last value of a name only.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`, when any is there.
    pub sparse: Option<PaxSparse>,
}

/// The sparse-file records of GNU tar, formats 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaxSparse {
    /// `GNU.sparse.major` and `.minor`.
    pub version: (Option<u64>, Option<u64>),
    /// `GNU.sparse.name`: the name, where `path` has a made-up one.
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `GNU.sparse.realsize`: size of the file with its holes.
    pub size: Option<u64>,
    /// `GNU.sparse.map`, or the pairs of `GNU.sparse.offset` and `GNU.sparse.numbytes`.
    pub map: Vec<Segment>,
    /// An `offset` that still waits for its `numbytes`.
    pending: Option<u64>,
}

impl Extensions {
    /// Reads the records that stand before one member. An empty value withdraws a key (POSIX).
    pub fn parse(body: &[u8]) -> Result<Self, PaxError> {
        let mut all = Self::default();
        for record in records(body) {
            let (key, value) = record?;
            match key {
                b"path" => set(&mut all.path, "path", name(value, "path")?)?,
                b"linkpath" => set(&mut all.linkpath, "linkpath", name(value, "linkpath")?)?,
                b"size" => set(&mut all.size, "size", number(value, "size")?)?,
                b"uid" => set(&mut all.uid, "uid", number(value, "uid")?)?,
                b"gid" => set(&mut all.gid, "gid", number(value, "gid")?)?,
                b"mtime" => set(&mut all.mtime, "mtime", time(value)?)?,
                _ => {
                    if let Some(key) = key.strip_prefix(b"SCHILY.xattr.") {
                        if key.is_empty() {
                            return Err(PaxError::Value("extended attribute name"));
                        }
                        if all.xattrs.len() == MAX_XATTRS {
                            return Err(PaxError::TooMany("extended attributes", MAX_XATTRS));
                        }
                        all.xattrs.push((key.to_vec(), value.to_vec()));
                    } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        all.sparse.get_or_insert_default().record(key, value)?;
                    }
                }
            }
        }
        if all
            .sparse
            .as_ref()
            .is_some_and(|sparse| sparse.pending.is_some())
        {
            return Err(PaxError::Value("GNU.sparse.offset"));
        }
        keep_last(&mut all.xattrs);
        Ok(all)
    }
}

/// Of several attributes with one name the last one stands.
fn keep_last(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    let mut seen = BTreeSet::new();
    let last: Vec<bool> = xattrs
        .iter()
        .rev()
        .map(|(name, _)| seen.insert(name))
        .collect();
    let mut last = last.into_iter().rev();
    xattrs.retain(|_| last.next().unwrap_or(true));
}

/// Checks a global header. Image builders write comments there and every reader of layers leaves
/// the rest unused; what would change which bytes belong to which member is refused.
pub fn check_global(body: &[u8]) -> Result<(), PaxError> {
    for record in records(body) {
        match record?.0 {
            b"path" => return Err(PaxError::Global("path")),
            b"linkpath" => return Err(PaxError::Global("linkpath")),
            b"size" => return Err(PaxError::Global("size")),
            key if key.starts_with(b"GNU.sparse.") => return Err(PaxError::Global("GNU.sparse")),
            _ => {}
        }
    }
    Ok(())
}

impl PaxSparse {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        match key {
            b"major" => set(
                &mut self.version.0,
                "GNU.sparse.major",
                number(value, "GNU.sparse.major")?,
            ),
            b"minor" => set(
                &mut self.version.1,
                "GNU.sparse.minor",
                number(value, "GNU.sparse.minor")?,
            ),
            b"name" => set(
                &mut self.name,
                "GNU.sparse.name",
                name(value, "GNU.sparse.name")?,
            ),
            b"size" | b"realsize" => set(
                &mut self.size,
                "GNU.sparse.size",
                number(value, "GNU.sparse.size")?,
            ),
            b"offset" => {
                if self.pending.is_some() {
                    return Err(PaxError::Value("GNU.sparse.offset"));
                }
                self.pending = number(value, "GNU.sparse.offset")?;
                Ok(())
            }
            b"numbytes" => {
                let bad = PaxError::Value("GNU.sparse.numbytes");
                let offset = self.pending.take().ok_or(bad)?;
                let length = number(value, "GNU.sparse.numbytes")?.ok_or(bad)?;
                self.map.push(Segment { offset, length });
                Ok(())
            }
            b"map" => {
                let bad = PaxError::Value("GNU.sparse.map");
                let numbers: Vec<u64> = value
                    .split(|&byte| byte == b',')
                    .map(decimal)
                    .collect::<Option<_>>()
                    .ok_or(bad)?;
                if !numbers.len().is_multiple_of(2) || !self.map.is_empty() {
                    return Err(bad);
                }
                self.map = numbers
                    .chunks_exact(2)
                    .map(|pair| Segment {
                        offset: pair[0],
                        length: pair[1],
                    })
                    .collect();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Stores a value; a second one must agree with the first.
fn set<T: PartialEq>(
    slot: &mut Option<T>,
    key: &'static str,
    value: Option<T>,
) -> Result<(), PaxError> {
    if slot.is_some() && *slot != value {
        return Err(PaxError::Repeated(key));
    }
    *slot = value;
    Ok(())
}

fn name(value: &[u8], key: &'static str) -> Result<Option<Vec<u8>>, PaxError> {
    match value {
        [] => Ok(None),
        _ if value.contains(&0) => Err(PaxError::Value(key)),
        _ => Ok(Some(value.to_vec())),
    }
}

fn number(value: &[u8], key: &'static str) -> Result<Option<u64>, PaxError> {
    if value.is_empty() {
        Ok(None)
    } else {
        decimal(value).map(Some).ok_or(PaxError::Value(key))
    }
}

/// `[-]SECONDS[.FRACTION]`; digits beyond nanoseconds are cut off.
fn time(value: &[u8]) -> Result<Option<Time>, PaxError> {
    const BAD: PaxError = PaxError::Value("mtime");
    if value.is_empty() {
        return Ok(None);
    }
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &value[value.len()..]),
    };
    let seconds = decimal(whole)
        .and_then(|n| i64::try_from(n).ok())
        .ok_or(BAD)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let nanos = (0..9).fold(0, |sum, at| {
        sum * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'))
    });
    Ok(Some(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time {
            seconds: -seconds,
            nanos,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        pairs
            .iter()
            .flat_map(|(key, value)| crate::layer::fixture::record(key, value))
            .collect()
    }

    #[test]
    fn attributes_are_few_and_the_last_of_a_name_stands() {
        let many = |count: usize| {
            let keys = (0..count).map(|n| format!("SCHILY.xattr.user.{n}"));
            let records = keys.flat_map(|key| crate::layer::fixture::record(key.as_bytes(), b"v"));
            Extensions::parse(&records.collect::<Vec<u8>>())
        };
        assert_eq!(many(MAX_XATTRS).unwrap().xattrs.len(), MAX_XATTRS);
        let refused = PaxError::TooMany("extended attributes", MAX_XATTRS);
        assert_eq!(many(MAX_XATTRS + 1), Err(refused));
        // What a header has room for at most.
        assert_eq!(many(40_000), Err(refused));
        let twice: [(&[u8], &[u8]); 4] = [
            (b"SCHILY.xattr.user.a", b"1"),
            (b"SCHILY.xattr.user.b", b"2"),
            (b"SCHILY.xattr.user.a", b"3"),
            (b"SCHILY.xattr.user.c", b"4"),
        ];
        let found = Extensions::parse(&body(&twice)).unwrap().xattrs;
        let expected = [("user.b", "2"), ("user.a", "3"), ("user.c", "4")]
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        assert_eq!(found, expected);
    }

    #[test]
    fn known_keys() {
        let found = Extensions::parse(&body(&[
            (b"path", b"a/\xff\nb"),
            (b"size", b"10"),
            (b"mtime", b"1700000000.25"),
            (b"SCHILY.xattr.security.capability", b"\x01\x00\n=\x02"),
            (b"comment", b"ignored"),
        ]))
        .unwrap();
        assert_eq!(found.path.unwrap(), b"a/\xff\nb");
        assert_eq!(found.size, Some(10));
        assert_eq!(
            found.mtime,
            Some(Time {
                seconds: 1_700_000_000,
                nanos: 250_000_000
            })
        );
        assert_eq!(
            found.xattrs,
            [(b"security.capability".to_vec(), b"\x01\x00\n=\x02".to_vec())]
        );
    }

    #[test]
    fn malformed_records() {
        for bad in [
            &b"x"[..],
            b"12 path=abc",
            b"5 a=b\n",
            b"7 a=b\n",
            b"06 a=b\n6",
            b"4 a\n",
            b"5 =a\n",
            b"+6 a=b\n",
            b"99999999999999999999 a=b\n",
            b" 6 a=b\n",
            b"0 \n",
        ] {
            assert_eq!(
                Extensions::parse(bad),
                Err(PaxError::Record),
                "{}",
                bad.escape_ascii()
            );
        }
    }

    #[test]
    fn bad_values() {
        for (key, value) in [
            (&b"size"[..], &b"-1"[..]),
            (b"size", b"0x10"),
            (b"size", b"18446744073709551616"),
            (b"uid", b"1.5"),
            (b"path", b"a\0b"),
            (b"mtime", b"now"),
            (b"mtime", b"1.2.3"),
            (b"GNU.sparse.map", b"1,2,3"),
            (b"GNU.sparse.numbytes", b"3"),
            (b"GNU.sparse.offset", b"3"),
            (b"SCHILY.xattr.", b"v"),
        ] {
            let found = Extensions::parse(&body(&[(key, value)]));
            assert!(
                matches!(found, Err(PaxError::Value(_))),
                "{}",
                key.escape_ascii()
            );
        }
    }

    #[test]
    fn one_key_twice() {
        let twice = |second: &[u8]| Extensions::parse(&body(&[(b"size", b"1"), (b"size", second)]));
        assert_eq!(twice(b"2"), Err(PaxError::Repeated("size")));
        assert_eq!(twice(b"1").unwrap().size, Some(1));
    }

    #[test]
    fn times() {
        let at = |text: &[u8]| time(text).unwrap().unwrap();
        assert_eq!(
            at(b"-1.5"),
            Time {
                seconds: -2,
                nanos: 500_000_000
            }
        );
        assert_eq!(
            at(b"-3"),
            Time {
                seconds: -3,
                nanos: 0
            }
        );
        assert_eq!(
            at(b"0.1234567899"),
            Time {
                seconds: 0,
                nanos: 123_456_789
            }
        );
    }

    #[test]
    fn globals() {
        assert_eq!(
            check_global(&body(&[(b"comment", b"git"), (b"mtime", b"0")])),
            Ok(())
        );
        assert_eq!(
            check_global(&body(&[(b"size", b"1")])),
            Err(PaxError::Global("size"))
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Extensions::parse(&bytes);
            let _ = check_global(&bytes);
        }

        #[test]
        fn round_trip(path in proptest::collection::vec(1..=255u8, 1..300), size: u64) {
            let size_text = size.to_string();
            let found = Extensions::parse(&body(&[(b"path", &path), (b"size", size_text.as_bytes())])).unwrap();
            prop_assert_eq!(found.path, Some(path));
            prop_assert_eq!(found.size, Some(size));
        }
    }
}

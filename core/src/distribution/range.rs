//! Byte ranges: `Range` and `Content-Range` of downloads (RFC 9110 §14) and of uploads (OCI
//! distribution specification, "Pushing a blob in chunks").

use alloc::{format, string::String};

/// Bytes `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Offset of the last byte; not below `first`.
    pub last: u64,
}

impl ByteRange {
    /// The range, unless it ends before it begins.
    pub fn new(first: u64, last: u64) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Number of bytes; `u64::MAX` for the one range that has more.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Value of a `Content-Range` header of a 206 answer.
    pub fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.first, self.last)
    }

    /// Value of a `Range` header that asks for everything from `first` on.
    pub fn request_from(first: u64) -> String {
        format!("bytes={first}-")
    }
}

/// What a server does about a `Range` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeAnswer {
    /// 200 with everything: no range, several, or one that makes no sense.
    Whole,
    /// 206 with these bytes, all of them existing.
    Part(ByteRange),
    /// 416: it starts behind the end of the content, or ends before its own beginning.
    Unsatisfiable,
}

/// Reads a `Range` header for content of `size` bytes.
pub fn parse_range(header: &str, size: u64) -> RangeAnswer {
    let Some((unit, set)) = header.split_once('=') else {
        return RangeAnswer::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return RangeAnswer::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else {
        return RangeAnswer::Whole;
    };
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            None => RangeAnswer::Whole,
            Some(0) => RangeAnswer::Unsatisfiable,
            Some(_) if size == 0 => RangeAnswer::Unsatisfiable,
            Some(suffix) => {
                let first = size.saturating_sub(suffix);
                RangeAnswer::Part(ByteRange {
                    first,
                    last: size - 1,
                })
            }
        },
        (first, last) => {
            let last = if last.is_empty() {
                Some(u64::MAX)
            } else {
                number(last)
            };
            let Some((first, last)) = number(first).zip(last) else {
                return RangeAnswer::Whole;
            };
            // RFC 9110 §14.2 lets a server refuse a range that ends before it begins, and the
            // conformance tests of the OCI specification ask for it.
            let Some(range) = ByteRange::new(first, last) else {
                return RangeAnswer::Unsatisfiable;
            };
            if range.first >= size {
                return RangeAnswer::Unsatisfiable;
            }
            RangeAnswer::Part(ByteRange {
                last: range.last.min(size - 1),
                ..range
            })
        }
    }
}

/// Value of the `Content-Range` header of a 416 answer.
pub fn unsatisfied(size: u64) -> String {
    format!("bytes */{size}")
}

/// What a `Content-Range` header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The bytes in the body; none in a 416 answer.
    pub range: Option<ByteRange>,
    /// The size of the whole, when the server knows it.
    pub size: Option<u64>,
}

/// Reads the `Content-Range` header of an answer. `None` when it is malformed, or reaches behind
/// the size that it names.
pub fn parse_content_range(header: &str) -> Option<ContentRange> {
    let (unit, rest) = header.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, size) = rest.trim().split_once('/')?;
    let size = if size == "*" {
        None
    } else {
        Some(number(size)?)
    };
    let range = if range == "*" {
        None
    } else {
        Some(pair(range)?)
    };
    match (range, size) {
        (None, None) => None,
        (Some(range), Some(size)) if range.last >= size => None,
        (range, size) => Some(ContentRange { range, size }),
    }
}

/// Reads the `Content-Range` header of an uploaded chunk: `0-1023`, and the spellings with a unit
/// or a size that some clients send (`bytes 0-1023/2048`).
pub fn parse_upload_chunk(header: &str) -> Option<ByteRange> {
    let mut text = header.trim();
    if let Some((unit, rest)) = text.split_at_checked(5)
        && unit.eq_ignore_ascii_case("bytes")
    {
        text = rest.trim_start_matches([' ', '=']);
    }
    if let Some((range, size)) = text.split_once('/') {
        if size != "*" {
            number(size)?;
        }
        text = range;
    }
    pair(text)
}

/// Value of the `Content-Range` header of an uploaded chunk.
pub fn upload_chunk(range: ByteRange) -> String {
    format!("{}-{}", range.first, range.last)
}

/// Value of the `Range` header by which a server tells how many bytes of an upload it has.
///
/// An empty upload is `0-0`, as registries have always said it.
pub fn upload_received(received: u64) -> String {
    format!("0-{}", received.saturating_sub(1))
}

/// Reads the `Range` header of an upload: how many bytes the server has.
///
/// `0-0` may stand for none or for one byte; it reads as none. A client that resumes sends the
/// range of its next chunk, so a server that had one byte answers 416 and nothing is mixed up.
pub fn parse_upload_received(header: &str) -> Option<u64> {
    let text = header.trim();
    let text = text.strip_prefix("bytes=").unwrap_or(text);
    match pair(text)? {
        ByteRange { first: 0, last: 0 } => Some(0),
        ByteRange { first: 0, last } => last.checked_add(1),
        _ => None,
    }
}

fn pair(text: &str) -> Option<ByteRange> {
    let (first, last) = text.split_once('-')?;
    ByteRange::new(number(first)?, number(last)?)
}

/// Digits only: no sign, no white space.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(first: u64, last: u64) -> RangeAnswer {
        RangeAnswer::Part(ByteRange { first, last })
    }

    #[test]
    fn ranges_of_downloads() {
        use RangeAnswer::{Unsatisfiable, Whole};
        for (header, size, answer) in [
            ("bytes=0-9", 100, part(0, 9)),
            ("Bytes = 0-9 ", 100, part(0, 9)),
            ("bytes=10-", 100, part(10, 99)),
            ("bytes=-10", 100, part(90, 99)),
            ("bytes=-1000", 100, part(0, 99)),
            ("bytes=90-1000", 100, part(90, 99)),
            ("bytes=99-99", 100, part(99, 99)),
            ("bytes=100-", 100, Unsatisfiable),
            ("bytes=100-200", 100, Unsatisfiable),
            ("bytes=-0", 100, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-1", 0, Unsatisfiable),
            ("bytes=0-18446744073709551615", 100, part(0, 99)),
            ("bytes=0-18446744073709551616", 100, Whole),
            ("bytes=9-0", 100, Unsatisfiable),
            ("bytes=0-1,5-6", 100, Whole),
            ("bytes=a-b", 100, Whole),
            ("bytes=+1-2", 100, Whole),
            ("bytes=-", 100, Whole),
            ("bytes=", 100, Whole),
            ("lines=0-1", 100, Whole),
            ("0-1", 100, Whole),
            ("", 100, Whole),
        ] {
            assert_eq!(parse_range(header, size), answer, "{header}");
        }
    }

    #[test]
    fn content_ranges() {
        let range = ByteRange::new(5, 9);
        for (header, parsed) in [
            (
                "bytes 5-9/10",
                Some(ContentRange {
                    range,
                    size: Some(10),
                }),
            ),
            ("bytes 5-9/*", Some(ContentRange { range, size: None })),
            (
                "bytes */10",
                Some(ContentRange {
                    range: None,
                    size: Some(10),
                }),
            ),
            ("bytes */*", None),
            ("bytes 5-9/9", None),
            ("bytes 9-5/10", None),
            ("bytes 5-9", None),
            ("bytes -9/10", None),
            ("lines 5-9/10", None),
            ("", None),
        ] {
            assert_eq!(parse_content_range(header), parsed, "{header}");
        }
        assert_eq!(unsatisfied(7), "bytes */7");
    }

    #[test]
    fn chunks_of_uploads() {
        let range = ByteRange::new(0, 1023);
        for good in [
            "0-1023",
            " 0-1023 ",
            "bytes 0-1023/2048",
            "bytes=0-1023",
            "0-1023/*",
        ] {
            assert_eq!(parse_upload_chunk(good), range, "{good}");
        }
        for bad in [
            "",
            "1023",
            "5-4",
            "-5",
            "5-",
            "a-b",
            "bytes",
            "0-1/x",
            "0 - 1",
            "byteé0-1",
        ] {
            assert_eq!(parse_upload_chunk(bad), None, "{bad}");
        }
    }

    #[test]
    fn received_bytes_of_uploads() {
        assert_eq!(upload_received(0), "0-0");
        assert_eq!(upload_received(1), "0-0");
        assert_eq!(parse_upload_received("0-0"), Some(0));
        assert_eq!(parse_upload_received("bytes=0-9"), Some(10));
        assert_eq!(parse_upload_received("0-18446744073709551615"), None);
        assert_eq!(parse_upload_received("1-5"), None);
        assert_eq!(parse_upload_received(""), None);
    }

    proptest! {
        #[test]
        fn answers_lie_inside_the_content(header in "(bytes=)?[0-9,= -]{0,45}", size: u64) {
            if let RangeAnswer::Part(range) = parse_range(&header, size) {
                prop_assert!(range.first <= range.last && range.last < size);
                prop_assert!(range.len() <= size);
            }
        }

        #[test]
        fn round_trips(first: u64, length in 0u64..1000, beyond in 1u64..1000) {
            let range = ByteRange { first: first / 2, last: first / 2 + length };
            let size = range.last + beyond;
            prop_assert_eq!(
                parse_content_range(&range.content_range(size)),
                Some(ContentRange { range: Some(range), size: Some(size) })
            );
            prop_assert_eq!(parse_upload_chunk(&upload_chunk(range)), Some(range));
            if size > 1 {
                prop_assert_eq!(parse_upload_received(&upload_received(size)), Some(size));
            }
            let header = ByteRange::request_from(range.first);
            prop_assert_eq!(parse_range(&header, size), part(range.first, size - 1));
        }

        #[test]
        fn never_panics(header in ".{0,40}", size: u64) {
            let _ = parse_range(&header, size);
            let _ = parse_content_range(&header);
            let _ = parse_upload_chunk(&header);
            let _ = parse_upload_received(&header);
        }
    }
}

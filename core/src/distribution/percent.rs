//! Percent-encoding (RFC 3986 §2.1).

use alloc::{borrow::Cow, string::String, vec::Vec};

/// Decodes `%xx`. `None` when a `%` is not followed by two hexadecimal digits, or when the result
/// is not UTF-8 or has control characters: no name of this protocol has them.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    let plain = |text: &str| !text.bytes().any(|byte| byte.is_ascii_control());
    if !text.contains('%') {
        return plain(text).then_some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (&[high, low], tail) = rest.split_first_chunk::<2>()?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        bytes.push(u8::try_from(digit(high)? << 4 | digit(low)?).ok()?);
        rest = tail;
    }
    let decoded = String::from_utf8(bytes).ok()?;
    plain(&decoded).then_some(Cow::Owned(decoded))
}

/// Encodes everything but the unreserved characters, `:` and `/`, for the value of a query.
pub fn encode(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decoding() {
        for (text, decoded) in [
            ("", Some("")),
            ("sha256%3Aab", Some("sha256:ab")),
            ("%C3%a9", Some("é")),
            ("a+b", Some("a+b")),
            ("%2e%2E%2f", Some("../")),
            ("%252e", Some("%2e")),
            ("%", None),
            ("%4", None),
            ("%zz", None),
            ("%+1", None),
            ("%é", None),
            ("%ff", None),
            ("%00", None),
            ("a%0d%0ab", None),
            ("\u{7f}", None),
        ] {
            assert_eq!(decode(text).as_deref(), decoded, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(text in "[^\\x00-\\x1f\\x7f]{0,30}") {
            let encoded = encode(&text);
            prop_assert!(encoded.is_ascii() && !encoded.contains(['&', '=', '+', ' ', '#', '?']));
            let decoded = decode(&encoded);
            prop_assert_eq!(decoded.as_deref(), Some(text.as_str()));
        }

        #[test]
        fn never_panics(text in "[%0-9a-fé]{0,12}|.{0,30}") {
            let _ = decode(&text);
        }
    }
}

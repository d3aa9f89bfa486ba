//! The number under which OpenSSL finds a certificate in a directory of authorities (`CApath`): a hash
//! of the subject's name in a form without case and needless space, as `openssl x509 -hash` prints it.

mod sha1;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const T61: u8 = 0x14;
const IA5: u8 = 0x16;
const VISIBLE: u8 = 0x1a;
/// Four bytes for a character, and two.
const WIDER: u8 = 0x1c;
const WIDE: u8 = 0x1e;

/// The name of the file for a certificate in DER, without the number behind the dot that tells
/// certificates of one subject apart. `None`: this is no certificate, or none with a name that can be
/// compared.
pub(super) fn hash(certificate: &[u8]) -> Option<String> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (signed, _) = element(certificate, SEQUENCE)?;
    let mut rest = signed;
    // A version is left out of old certificates.
    if rest.first() == Some(&0xa0) {
        rest = next(rest)?.rest;
    }
    // Serial number, algorithm, issuer, validity.
    for _ in 0..4 {
        rest = next(rest)?.rest;
    }
    let (name, _) = element(rest, SEQUENCE)?;
    let digest = sha1::digest(&canonical(name)?);
    let number = u32::from_le_bytes(*digest.first_chunk()?);
    Some(format!("{number:08x}"))
}

/// The relative names one behind the other: what surrounds them is left out.
fn canonical(mut name: &[u8]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    while !name.is_empty() {
        let (mut parts, rest) = element(name, SET)?;
        name = rest;
        let mut set = Vec::new();
        while !parts.is_empty() {
            let (part, rest) = element(parts, SEQUENCE)?;
            parts = rest;
            let kind = next(part).filter(|kind| kind.tag == OID)?;
            let value = next(kind.rest).filter(|value| value.rest.is_empty())?;
            let mut body = Vec::new();
            append(&mut body, OID, kind.body);
            match value.tag {
                UTF8 | PRINTABLE | T61 | IA5 | VISIBLE | WIDE | WIDER => {
                    let text = text(value.tag, value.body)?;
                    append(&mut body, UTF8, plain(&text).as_bytes());
                }
                // Byte by byte.
                other => append(&mut body, other, value.body),
            }
            let mut encoded = Vec::new();
            append(&mut encoded, SEQUENCE, &body);
            set.push(encoded);
        }
        set.sort_unstable();
        append(&mut all, SET, &set.concat());
    }
    Some(all)
}

/// A value's text.
fn text(tag: u8, body: &[u8]) -> Option<String> {
    let wide = |width: usize| -> Option<String> {
        let parts = body.chunks_exact(width);
        if !parts.remainder().is_empty() {
            return None;
        }
        let number = |part: &[u8]| {
            part.iter()
                .fold(0, |sum, byte| (sum << 8) | u32::from(*byte))
        };
        parts.map(|part| char::from_u32(number(part))).collect()
    };
    match tag {
        UTF8 => core::str::from_utf8(body).ok().map(String::from),
        WIDE => wide(2),
        WIDER => wide(4),
        // OpenSSL reads T.61 as Latin-1, which ASCII is a part of.
        _ => Some(body.iter().map(|byte| char::from(*byte)).collect()),
    }
}

/// Small letters, no space around, one blank for any space within; all of it for ASCII alone.
fn plain(text: &str) -> String {
    let is_space = |c: char| matches!(c, ' ' | '\t'..='\r');
    let words = text.split(is_space).filter(|word| !word.is_empty());
    let words: Vec<_> = words.collect();
    words.join(" ").to_ascii_lowercase()
}

/// One element of DER.
struct Element<'a> {
    tag: u8,
    body: &'a [u8],
    rest: &'a [u8],
}

fn next(bytes: &[u8]) -> Option<Element<'_>> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let (digits, behind) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        length = digits
            .iter()
            .fold(0, |sum, digit| (sum << 8) | usize::from(*digit));
        rest = behind;
    }
    let (body, rest) = rest.split_at_checked(length)?;
    Some(Element { tag, body, rest })
}

/// The body of an element of this kind, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let element = next(bytes).filter(|element| element.tag == tag)?;
    Some((element.body, element.rest))
}

fn append(to: &mut Vec<u8>, tag: u8, body: &[u8]) {
    to.push(tag);
    let digits = body.len().to_be_bytes();
    let skip = digits.iter().take_while(|digit| **digit == 0).count();
    match body.len() {
        // Less than 128 fits seven bits.
        short @ 0..128 => to.push(u8::try_from(short).unwrap_or_default()),
        _ => {
            let digits = &digits[skip..];
            to.push(0x80 | u8::try_from(digits.len()).unwrap_or_default());
            to.extend_from_slice(digits);
        }
    }
    to.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::base64;

    /// Certificates made by OpenSSL, with what `openssl x509 -hash` says of them.
    const KNOWN: &[(&str, &str)] = &include!("known.in");

    #[test]
    fn openssl_says_the_same() {
        assert!(KNOWN.len() >= 4);
        for (expected, body) in KNOWN {
            let der = base64::decode(body.as_bytes()).unwrap();
            assert_eq!(hash(&der).as_deref(), Some(*expected));
        }
    }

    #[test]
    fn every_kind_of_text_means_the_same() {
        for (tag, body) in [
            (UTF8, "Lab  É".as_bytes().to_vec()),
            (T61, b" LAB \xc9".to_vec()),
            (WIDE, vec![0, b'L', 0, b'a', 0, b'B', 0, b'\t', 0, 0xc9]),
        ] {
            let text = text(tag, &body).unwrap();
            assert_eq!(plain(&text), "lab É", "{tag}");
        }
        assert_eq!(text(WIDE, &[0]), None);
        assert_eq!(text(WIDE, &[0xd8, 0]), None);
        assert_eq!(text(WIDER, &[0, 0, 0, 0x41]).unwrap(), "A");
        assert_eq!(text(UTF8, &[0xff]), None);
    }

    #[test]
    fn lengths_of_every_size() {
        for length in [0, 127, 128, 255, 256, 70_000] {
            let mut bytes = Vec::new();
            append(&mut bytes, SET, &vec![7; length]);
            bytes.push(9);
            let (body, rest) = element(&bytes, SET).unwrap();
            assert_eq!((body.len(), rest), (length, &[9][..]));
        }
        for bad in [
            &[0x30][..],
            &[0x30, 0x80],
            &[0x30, 0x85, 0, 0, 0, 0, 0],
            &[0x30, 1],
        ] {
            assert!(next(bad).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_hash_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = hash(&bytes);
            let _ = canonical(&bytes);
        }

        #[test]
        fn damage_is_no_panic(which in 0..KNOWN.len(), at: prop::sample::Index, to: u8) {
            let mut der = base64::decode(KNOWN[which].1.as_bytes()).unwrap();
            let at = at.index(der.len());
            der[at] = to;
            let _ = hash(&der);
            let _ = hash(&der[..at]);
        }
    }
}

//! Certificates in PEM (RFC 7468), as text.

use alloc::string::String;
use alloc::vec::Vec;

use crate::base64;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates of a text and nothing else of it, with plain line ends. A private key in the
/// text is an error: it would end up in every image.
pub fn certificates(text: &str) -> Result<String, &'static str> {
    if text.contains("PRIVATE KEY-----") {
        return Err("the file holds a private key; give a file with the certificate alone");
    }
    let mut pem = String::new();
    for body in bodies(text) {
        let content = base64::decode(body.as_bytes());
        // A certificate is a DER sequence.
        if content.is_none_or(|der| der.first() != Some(&0x30)) {
            return Err("a certificate in it is damaged");
        }
        pem.push_str(BEGIN);
        for line in body.as_bytes().chunks(64) {
            pem.push('\n');
            pem.extend(line.iter().map(|byte| char::from(*byte)));
        }
        pem.push('\n');
        pem.push_str(END);
        pem.push('\n');
    }
    if pem.is_empty() {
        return Err("the file holds no certificate in PEM");
    }
    Ok(pem)
}

/// The base64 of each certificate, without white space.
pub(super) fn bodies(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        rest = &rest[start + BEGIN.len()..];
        let Some(end) = rest.find(END) else {
            break;
        };
        found.push(
            rest[..end]
                .chars()
                .filter(|c| !c.is_ascii_whitespace())
                .collect(),
        );
        rest = &rest[end + END.len()..];
    }
    found
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn certificates_are_taken_out_of_what_surrounds_them() {
        let body = base64::encode(&[0x30; 100]);
        let text =
            format!("subject=x\r\n{BEGIN}\r\n{body}\r\n{END}\r\ntrailing {BEGIN}\n{body}\n{END}");
        let pem = certificates(&text).unwrap();
        assert_eq!(bodies(&pem), [body.clone(), body.clone()]);
        assert!(pem.starts_with(BEGIN) && pem.ends_with(&format!("{END}\n")));
        assert!(pem.lines().all(|line| line.len() <= 64));
        assert_eq!(certificates(&pem).unwrap(), pem);
    }

    #[test]
    fn keys_and_damage_are_refused() {
        let body = base64::encode(&[0x30; 10]);
        for text in [
            String::new(),
            format!("{BEGIN}\n{body}"),
            format!("{BEGIN}\n!!\n{END}"),
            format!("{BEGIN}\n{}\n{END}", base64::encode(b"text")),
            format!("{BEGIN}\n{body}\n{END}\n-----BEGIN EC PRIVATE KEY-----\n"),
        ] {
            assert!(certificates(&text).is_err(), "{text}");
        }
    }
}

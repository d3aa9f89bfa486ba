//! The one place that reads PEM. Everything else passes `rustls_pki_types` values, so that another
//! parser is a change of this file alone.

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::TransferError;

/// All certificates of a PEM text, in order. None at all is an error: a CA file that holds no
/// certificate would otherwise end as an unexplained TLS failure.
///
/// `origin` names the file or setting in errors.
pub fn certificates(
    pem: &[u8],
    origin: &str,
) -> Result<Vec<CertificateDer<'static>>, TransferError> {
    let found: Vec<_> = rustls_pemfile::certs(&mut &*pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(origin, &error.to_string()))?;
    if found.is_empty() {
        return Err(unusable(
            origin,
            "it holds no certificate (expected a section BEGIN CERTIFICATE)",
        ));
    }
    Ok(found)
}

/// The private key of a PEM text: exactly one section, PKCS#8, PKCS#1 or SEC1.
pub fn private_key(pem: &[u8], origin: &str) -> Result<PrivateKeyDer<'static>, TransferError> {
    let mut reader = pem;
    let mut next = || {
        rustls_pemfile::private_key(&mut reader)
            .map_err(|error| unusable(origin, &error.to_string()))
    };
    let Some(key) = next()? else {
        return Err(unusable(
            origin,
            "it holds no private key (expected a section BEGIN PRIVATE KEY)",
        ));
    };
    if next()?.is_some() {
        return Err(unusable(origin, "it holds more than one private key"));
    }
    Ok(key)
}

fn unusable(origin: &str, reason: &str) -> TransferError {
    TransferError::Config(format!("{origin} is not usable: {reason}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO: &str = "text before\n-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n\
        -----BEGIN PRIVATE KEY-----\nBAUG\n-----END PRIVATE KEY-----\n\
        -----BEGIN CERTIFICATE-----\nBwgJ\n-----END CERTIFICATE-----\n";

    #[test]
    fn all_certificates_in_order_other_sections_apart() {
        let found = certificates(TWO.as_bytes(), "ca.crt").unwrap();
        let bytes: Vec<&[u8]> = found.iter().map(AsRef::as_ref).collect();
        assert_eq!(bytes, [&[1, 2, 3][..], &[7, 8, 9][..]]);
        let key = private_key(TWO.as_bytes(), "ca.crt").unwrap();
        assert_eq!(key.secret_der(), [4, 5, 6]);
    }

    #[test]
    fn nothing_found_is_an_error_that_names_the_file() {
        for text in ["", "not pem", "-----BEGIN CERTIFICATE-----\nAQID\n"] {
            let error = certificates(text.as_bytes(), "etc/ca.crt").unwrap_err();
            assert!(error.to_string().contains("etc/ca.crt"), "{error}");
            assert!(private_key(text.as_bytes(), "server.key").is_err());
        }
    }

    #[test]
    fn two_keys_are_ambiguous() {
        let key = "-----BEGIN PRIVATE KEY-----\nBAUG\n-----END PRIVATE KEY-----\n";
        let error = private_key(key.repeat(2).as_bytes(), "server.key").unwrap_err();
        assert!(error.to_string().contains("more than one"), "{error}");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = certificates(&bytes, "x");
            let _ = private_key(&bytes, "x");
        }

        #[test]
        fn never_panics_inside_a_section(body in "[A-Za-z0-9+/=\n -]{0,80}") {
            let text = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
            let _ = certificates(text.as_bytes(), "x");
        }
    }
}

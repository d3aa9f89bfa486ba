//! What a certificate says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use vdkr_core::certificate::{AltName, Validity};
use vdkr_transfer::pem;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::error::PkiError;

/// One certificate, read.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: Vec<u8>,
    /// Whom it is for: `CN=localhost, O=…`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The names it is good for. Kinds that are no use to a registry are left out.
    pub names: Vec<AltName>,
    /// When it holds.
    pub validity: Validity,
    /// SHA-256 of the certificate in hexadecimal, with colons as openssl writes it.
    pub fingerprint: String,
    /// Whether it may sign others.
    pub is_ca: bool,
}

/// What `pki show --json` prints of a certificate.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    path: &'a Path,
    subject: &'a str,
    issuer: &'a str,
    names: Vec<String>,
    not_before: String,
    not_after: String,
    days_left: i64,
    fingerprint: &'a str,
}

impl Certificate {
    /// The first certificate of a PEM file; `path` names it in errors.
    pub fn from_pem(bytes: &[u8], path: &Path) -> Result<Self, PkiError> {
        let wrong = |reason: String| PkiError::Content {
            path: path.to_owned(),
            reason,
        };
        let found = pem::certificates(bytes, &path.display().to_string()).map_err(PkiError::Pem)?;
        let first = found
            .first()
            .ok_or_else(|| wrong("it is empty".to_owned()))?;
        Self::from_der(first).map_err(wrong)
    }

    /// A certificate in its binary form.
    pub fn from_der(der: &[u8]) -> Result<Self, String> {
        let parsed = parse(der)?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|error| format!("its names: {error}"))?;
        Ok(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            names: names.map_or_else(Vec::new, |extension| {
                let names = &extension.value.general_names;
                names.iter().filter_map(alt_name).collect()
            }),
            validity: Validity {
                not_before: parsed.validity().not_before.timestamp(),
                not_after: parsed.validity().not_after.timestamp(),
            },
            fingerprint: fingerprint(der),
            is_ca: parsed.is_ca(),
            der: der.to_vec(),
        })
    }

    /// The binary form.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether `ca` signed this, by name and by signature.
    pub fn is_issued_by(&self, ca: &Self) -> bool {
        let (Ok(own), Ok(ca)) = (parse(&self.der), parse(&ca.der)) else {
            return false;
        };
        own.issuer().as_raw() == ca.subject().as_raw()
            && own.verify_signature(Some(ca.public_key())).is_ok()
    }

    /// The public key as it stands in the certificate (SubjectPublicKeyInfo).
    pub fn public_key(&self) -> Vec<u8> {
        parse(&self.der).map_or_else(|_| Vec::new(), |parsed| parsed.public_key().raw.to_vec())
    }

    /// What is told of it; `now` in seconds since 1970.
    pub fn summary<'a>(&'a self, path: &'a Path, now: i64) -> Summary<'a> {
        Summary {
            path,
            subject: &self.subject,
            issuer: &self.issuer,
            names: self.names.iter().map(ToString::to_string).collect(),
            not_before: date(self.validity.not_before),
            not_after: date(self.validity.not_after),
            days_left: self.validity.days_left(now),
            fingerprint: &self.fingerprint,
        }
    }
}

/// A point in time as RFC 3339 has it.
pub fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err("something follows the certificate".to_owned()),
        Err(error) => Err(format!("it is not an X.509 certificate: {error}")),
    }
}

fn alt_name(name: &GeneralName<'_>) -> Option<AltName> {
    match name {
        GeneralName::DNSName(name) => AltName::parse(&format!("DNS:{name}")).ok(),
        GeneralName::IPAddress(bytes) => {
            let address = if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                IpAddr::V4(Ipv4Addr::from(v4))
            } else {
                IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).ok()?))
            };
            Some(AltName::Ip(address))
        }
        _ => None,
    }
}

fn fingerprint(der: &[u8]) -> String {
    let bytes: Vec<_> = Sha256::digest(der)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Certificate::from_der(&bytes);
            let _ = Certificate::from_pem(&bytes, Path::new("x"));
        }

        #[test]
        fn a_changed_certificate_is_another_or_none(at in 0_usize..300, bit in 0_u8..8) {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let mut der = made.cert.der().to_vec();
            let original = Certificate::from_der(&der).unwrap();
            prop_assert!(original.is_issued_by(&original));
            // What is signed lies behind the four bytes that open the whole.
            let signed = parse(&der).unwrap().tbs_certificate.as_ref().len();
            der[4 + at % signed] ^= 1 << bit;
            if let Ok(changed) = Certificate::from_der(&der) {
                prop_assert_ne!(&changed.fingerprint, &original.fingerprint);
                prop_assert!(!changed.is_issued_by(&original));
            }
        }
    }
}

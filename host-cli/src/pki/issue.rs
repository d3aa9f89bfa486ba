//! Making certificates.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use vdkr_core::certificate::{AltName, DAY, Validity};

use super::certificate::Certificate;
use super::error::PkiError;
use super::key::Key;

/// How a CA made here is called; the beginning of its key's hash follows, because two authorities of
/// one name confuse those who look them up by name.
pub(crate) const CA_NAME: &str = "Container Registry CA";
/// How the CA of today's generated script is called.
pub(crate) const OLD_CA_NAME: &str = "Yocto Container Registry CA";
const ORGANIZATION: &str = "container-registry";
/// Longest common name (RFC 5280, ub-common-name).
const MAX_COMMON_NAME: usize = 64;
/// Clocks differ, and a board without a battery may be behind.
const BACKDATED: i64 = DAY;

/// A certificate that was made.
pub(crate) struct Issued {
    pub(crate) certificate: Certificate,
    pub(crate) pem: String,
}

/// Makes a CA certificate that its own key signs.
pub(crate) fn authority(
    key: &Key,
    key_file: &Path,
    days: u32,
    now: i64,
) -> Result<Issued, PkiError> {
    let signer = key.signer(key_file)?;
    let hash = Sha256::digest(key.public());
    let name = format!(
        "{CA_NAME} {:02x}{:02x}{:02x}{:02x}",
        hash[0], hash[1], hash[2], hash[3]
    );
    let mut params = params(
        &name,
        Validity {
            not_before: now - BACKDATED,
            not_after: now + i64::from(days) * DAY,
        },
    )?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let made = params.self_signed(&signer).map_err(sign)?;
    read(&made)
}

/// When a server certificate made at `now` would end: never after its CA.
pub(crate) fn server_end(ca: &Certificate, days: u32, now: i64) -> i64 {
    (now + i64::from(days) * DAY).min(ca.validity.not_after)
}

/// Makes a server's certificate, signed by the CA.
pub(crate) fn server(
    ca: &Certificate,
    ca_key: (&Key, &Path),
    key: &Key,
    (host, names): (&str, &[AltName]),
    days: u32,
    now: i64,
) -> Result<Issued, PkiError> {
    let signer = ca_key.0.signer(ca_key.1)?;
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(ca.der()), signer).map_err(sign)?;
    let common_name = if host.is_empty() || host.len() > MAX_COMMON_NAME {
        ORGANIZATION
    } else {
        host
    };
    let not_before = (now - BACKDATED).max(ca.validity.not_before);
    let mut params = params(
        common_name,
        Validity {
            not_before,
            not_after: server_end(ca, days, now),
        },
    )?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if key.is_rsa() {
        // Clients without elliptic curves exchange keys by encryption.
        params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
    }
    for name in names {
        params.subject_alt_names.push(match name {
            AltName::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(sign)?),
            AltName::Ip(address) => SanType::IpAddress(*address),
        });
    }
    let made = params.signed_by(&key.subject()?, &issuer).map_err(sign)?;
    let issued = read(&made)?;
    if !issued.certificate.is_issued_by(ca) {
        return Err(PkiError::Sign(
            "the CA's certificate has a name or a key that new certificates cannot be linked to; \
             make a new CA with: container-registry pki renew --ca"
                .to_owned(),
        ));
    }
    Ok(issued)
}

fn params(common_name: &str, validity: Validity) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationName, ORGANIZATION);
    params.distinguished_name = name;
    params.not_before = moment(validity.not_before)?;
    params.not_after = moment(validity.not_after)?;
    // A certificate issued again for the same key must not have the same number.
    let mut serial = [0; 16];
    crate::random::fill(&mut serial).map_err(|error| PkiError::Sign(error.to_string()))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn moment(seconds: i64) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|_| PkiError::Sign(format!("{seconds} seconds since 1970 is no date")))
}

fn read(made: &rcgen::Certificate) -> Result<Issued, PkiError> {
    Ok(Issued {
        certificate: Certificate::from_der(made.der()).map_err(PkiError::Sign)?,
        pem: made.pem(),
    })
}

fn sign(error: impl std::fmt::Display) -> PkiError {
    PkiError::Sign(error.to_string())
}

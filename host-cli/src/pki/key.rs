//! Private keys: those made here, and those of today's system, which are RSA.

use std::path::Path;

use rcgen::{KeyPair, PublicKeyData as _, SubjectPublicKeyInfo};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use vdkr_transfer::pem;

use super::error::PkiError;

/// A private key.
pub(crate) struct Key {
    der: PrivateKeyDer<'static>,
    public: Vec<u8>,
}

impl Key {
    /// Makes a new one (ECDSA on P-256).
    pub(crate) fn generate() -> Result<Self, PkiError> {
        let pair = KeyPair::generate().map_err(|error| PkiError::Sign(error.to_string()))?;
        Ok(Self {
            public: pair.subject_public_key_info(),
            der: PrivatePkcs8KeyDer::from(pair.serialize_der()).into(),
        })
    }

    /// Reads PKCS#8, PKCS#1 or SEC1; `path` names the file in errors.
    pub(crate) fn from_pem(bytes: &[u8], path: &Path) -> Result<Self, PkiError> {
        let wrong = |reason: String| PkiError::Content {
            path: path.to_owned(),
            reason,
        };
        let der = pem::private_key(bytes, &path.display().to_string()).map_err(PkiError::Pem)?;
        let public = rustls::crypto::ring::default_provider()
            .key_provider
            .load_private_key(der.clone_key())
            .map_err(|error| wrong(error.to_string()))?
            .public_key()
            .map(|spki| spki.to_vec())
            .ok_or_else(|| wrong("its kind is not known".to_owned()))?;
        Ok(Self { der, public })
    }

    /// The public half (SubjectPublicKeyInfo).
    pub(crate) fn public(&self) -> &[u8] {
        &self.public
    }

    /// The public half, to be certified.
    pub(crate) fn subject(&self) -> Result<SubjectPublicKeyInfo, PkiError> {
        SubjectPublicKeyInfo::from_der(&self.public)
            .map_err(|error| PkiError::Sign(error.to_string()))
    }

    /// Whether it is RSA.
    pub(crate) fn is_rsa(&self) -> bool {
        /// rsaEncryption, 1.2.840.113549.1.1.1.
        const RSA: &[u8] = &[
            0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01,
        ];
        self.public
            .get(..40)
            .unwrap_or(&self.public)
            .windows(RSA.len())
            .any(|window| window == RSA)
    }

    /// For signing; `path` names the file in errors.
    pub(crate) fn signer(&self, path: &Path) -> Result<KeyPair, PkiError> {
        let wrapped;
        let pkcs8 = match &self.der {
            PrivateKeyDer::Pkcs8(key) => key.secret_pkcs8_der(),
            PrivateKeyDer::Pkcs1(key) => {
                wrapped = pkcs8_of_rsa(key.secret_pkcs1_der());
                &wrapped
            }
            _ => &[],
        };
        KeyPair::try_from(pkcs8).map_err(|error| PkiError::Content {
            path: path.to_owned(),
            reason: format!(
                "it cannot sign ({error}); ECDSA on P-256 or P-384, Ed25519 and RSA of 2048 bits \
                 or more can, as PKCS#8: convert it with openssl pkcs8 -topk8 -nocrypt"
            ),
        })
    }

    /// As PEM, PKCS#8.
    pub(crate) fn to_pem(&self) -> Result<String, PkiError> {
        let PrivateKeyDer::Pkcs8(key) = &self.der else {
            return Err(PkiError::Sign("only new keys are written".to_owned()));
        };
        let pair = KeyPair::try_from(key.secret_pkcs8_der())
            .map_err(|error| PkiError::Sign(error.to_string()))?;
        Ok(pair.serialize_pem())
    }
}

/// Wraps a PKCS#1 key ("BEGIN RSA PRIVATE KEY", as older openssl writes it) into PKCS#8 (RFC 5208 §5):
/// version 0, the algorithm rsaEncryption without parameters, the key as an octet string.
fn pkcs8_of_rsa(pkcs1: &[u8]) -> Vec<u8> {
    const HEAD: &[u8] = &[
        0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01,
        0x01, 0x05, 0x00,
    ];
    let mut body = HEAD.to_vec();
    body.extend(tagged(0x04, pkcs1));
    tagged(0x30, &body)
}

/// DER: tag, length, content.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_be_bytes();
    let digits = &length[length
        .iter()
        .position(|byte| *byte != 0)
        .unwrap_or(length.len() - 1)..];
    let mut out = vec![tag];
    if !matches!(digits, [0..=0x7f]) {
        out.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
    }
    out.extend_from_slice(digits);
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_keys_are_read_again() {
        let key = Key::generate().unwrap();
        let pem = key.to_pem().unwrap();
        let again = Key::from_pem(pem.as_bytes(), Path::new("k")).unwrap();
        assert_eq!(again.public(), key.public());
        assert!(!again.is_rsa());
        let signer = again.signer(Path::new("k")).unwrap();
        assert_eq!(signer.subject_public_key_info(), key.public());
        assert!(Key::from_pem(b"nothing", Path::new("k")).is_err());
    }

    #[test]
    fn lengths_of_der() {
        for (length, head) in [
            (0, &[0x30, 0][..]),
            (127, &[0x30, 127]),
            (128, &[0x30, 0x81, 128]),
            (256, &[0x30, 0x82, 1, 0]),
            (65_536, &[0x30, 0x83, 1, 0, 0]),
        ] {
            let whole = tagged(0x30, &vec![7; length]);
            assert_eq!(&whole[..head.len()], head);
            assert_eq!(whole.len(), head.len() + length);
        }
    }
}

//! TLS settings of the client. The provider (ring) is passed by hand: with a process default, one
//! dependency's feature could change or unset it for everybody.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use vdkr_core::reference::Host;

use crate::error::TransferError;
use crate::pem;

/// The certificate authorities a client trusts. Nothing is trusted unless it was asked for.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    native: bool,
    own: Vec<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// No authority at all: only plain HTTP can work until certificates are added.
    pub fn none() -> Self {
        Self::default()
    }

    /// The system's store (`/etc/ssl/certs`, `SSL_CERT_FILE`, …), read when the first certificate is
    /// checked: it takes longer than all else that a command over plain HTTP does.
    #[cfg(feature = "native-roots")]
    pub fn native() -> Self {
        Self {
            native: true,
            ..Self::default()
        }
    }

    /// Adds a whole trust store as PEM text. Old authorities with encodings that are not understood
    /// are common in such stores; they are left out.
    pub fn with_bundle(mut self, pem: &[u8], origin: &str) -> Result<Self, TransferError> {
        self.bundle.extend(pem::certificates(pem, origin)?);
        Ok(self)
    }

    /// Adds the certificates of a PEM text; `origin` names it in errors.
    pub fn with_pem(mut self, pem: &[u8], origin: &str) -> Result<Self, TransferError> {
        self.own.extend(pem::certificates(pem, origin)?);
        Ok(self)
    }

    /// The authorities that were given one by one, each of which has to be usable.
    fn own(&self) -> Result<RootCertStore, TransferError> {
        let mut store = RootCertStore::empty();
        for certificate in &self.own {
            store.add(certificate.clone()).map_err(|error| {
                TransferError::Config(format!("a CA certificate is not usable: {error}"))
            })?;
        }
        Ok(store)
    }
}

#[cfg(feature = "native-roots")]
fn add_native(store: &mut RootCertStore) {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "part of the system's certificates could not be read");
    }
    // Old authorities with encodings that webpki does not take are common in such stores.
    let (added, skipped) = store.add_parsable_certificates(found.certs);
    tracing::debug!(added, skipped, "system certificates");
}

#[cfg(not(feature = "native-roots"))]
fn add_native(_: &mut RootCertStore) {}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn versions(
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TransferError> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TransferError::Config(format!("TLS cannot be set up: {error}")))
}

/// Certificates are checked against `roots`, those of some hosts against authorities of their own.
pub(crate) fn verified(
    roots: &Roots,
    hosts: &[(Host, Roots)],
) -> Result<ClientConfig, TransferError> {
    let provider = provider();
    let hosts = hosts.iter().map(|(host, roots)| {
        let name = ServerName::try_from(host.name().to_owned())
            .map_err(|error| TransferError::Config(format!("{host}: {error}")))?;
        Ok((name, Authorities::new(roots, &provider)?))
    });
    let verifier = ByHost {
        others: Authorities::new(roots, &provider)?,
        hosts: hosts.collect::<Result<_, TransferError>>()?,
        algorithms: provider.signature_verification_algorithms,
    };
    Ok(versions(provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Authorities, whose stores are read when the first certificate is checked.
#[derive(Debug)]
struct Authorities {
    own: RootCertStore,
    native: bool,
    bundle: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    /// `None` trusts nobody, which rustls' own verifier refuses to be.
    verifier: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
}

impl Authorities {
    fn new(roots: &Roots, provider: &Arc<CryptoProvider>) -> Result<Self, TransferError> {
        Ok(Self {
            own: roots.own()?,
            native: roots.native,
            bundle: roots.bundle.clone(),
            provider: Arc::clone(provider),
            verifier: OnceLock::new(),
        })
    }

    fn verifier(&self) -> Option<&WebPkiServerVerifier> {
        let read = || {
            let mut store = self.own.clone();
            store.add_parsable_certificates(self.bundle.iter().cloned());
            if self.native {
                add_native(&mut store);
            }
            let provider = Arc::clone(&self.provider);
            // It fails for an empty store alone.
            WebPkiServerVerifier::builder_with_provider(store.into(), provider)
                .build()
                .ok()
        };
        self.verifier.get_or_init(read).as_deref()
    }
}

/// Checks certificates as rustls does, with the authorities that count for the host asked.
#[derive(Debug)]
struct ByHost {
    others: Authorities,
    hosts: Vec<(ServerName<'static>, Authorities)>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ByHost {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let own = self.hosts.iter().find(|(host, _)| host == name);
        let authorities = own.map_or(&self.others, |(_, authorities)| authorities);
        match authorities.verifier() {
            Some(verifier) => {
                verifier.verify_server_cert(certificate, intermediates, name, ocsp, now)
            }
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Any certificate will do: for hosts that the user named insecure, and for no others.
pub(crate) fn unverified() -> Result<ClientConfig, TransferError> {
    let provider = provider();
    let verifier = AnyCertificate(provider.signature_verification_algorithms);
    Ok(versions(provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Accepts every certificate, but still wants the handshake signed by its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_roots_still_make_a_configuration() {
        assert!(verified(&Roots::none(), &[]).is_ok());
        let host = Host::parse("localhost:5000").unwrap();
        assert!(verified(&Roots::none(), &[(host, Roots::none())]).is_ok());
        assert!(unverified().is_ok());
    }

    #[test]
    fn a_certificate_that_is_none_is_refused_when_the_client_is_built() {
        let pem = b"-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
        let roots = Roots::none().with_pem(pem, "ca.crt").unwrap();
        assert!(matches!(
            verified(&roots, &[]),
            Err(TransferError::Config(_))
        ));
    }
}

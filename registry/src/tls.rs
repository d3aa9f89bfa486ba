//! TLS: the server's certificate, swapped under running connections when its files change, and the
//! answer to those who speak plain HTTP.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use vdkr_core::distribution::{ErrorBody, ErrorCode};
use vdkr_core::reference::Host;

use crate::fs::{Changes, Watched};

/// Longest file of a certificate chain or key, in bytes.
const MAX_FILE: u64 = 256 << 10;
/// Most certificates of a chain.
const MAX_CHAIN: usize = 16;
/// Most that is read of a plain request, in bytes.
const PLAIN_HEAD: usize = 8 << 10;

/// Where the server's certificate and its key lie, as PEM. Both are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and the authority if there are any.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is not usable: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// They do not work together, or not at all.
    #[error("{} and {} are not usable together: {reason}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        reason: rustls::Error,
    },
    /// The library refuses its settings.
    #[error("TLS cannot be set up: {0}")]
    Library(rustls::Error),
}

/// The server's end of TLS.
pub(crate) struct Tls {
    certificate: Watched,
    key: Watched,
    /// Since the files were read last, to good or bad effect.
    changes: Mutex<Changes<2>>,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files. Without a certificate that works there is no server.
    pub(crate) fn open(files: &TlsFiles) -> Result<Self, TlsError> {
        let certificate = Watched::new(&files.certificate, MAX_FILE);
        let key = Watched::new(&files.key, MAX_FILE);
        let seen = [certificate.stamp(), key.stamp()];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let first = load(&certificate, &key, &provider)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(first))));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Library)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            certificate,
            key,
            changes: Mutex::new(Changes::since(seen)),
            current,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// Takes up files that have changed. What cannot be used is told once, and the old certificate
    /// stays. Blocks.
    pub(crate) fn refresh(&self, at_once: bool) {
        let now = [self.certificate.stamp(), self.key.stamp()];
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if !changes.are_due(now, at_once) {
            return;
        }
        let provider = rustls::crypto::ring::default_provider();
        match load(&self.certificate, &self.key, &provider) {
            Ok(new) => {
                *self
                    .current
                    .0
                    .write()
                    .unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                tracing::info!(certificate = %self.certificate.path().display(), "new TLS certificate");
            }
            Err(error) => {
                tracing::warn!(%error, "the TLS files have changed; going on with the old certificate");
            }
        }
    }

    /// The handshake with a new connection; `None` when it was answered in plain HTTP.
    pub(crate) async fn accept(
        &self,
        mut stream: TcpStream,
        patience: Duration,
    ) -> io::Result<Option<TlsStream<TcpStream>>> {
        let handshake = async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 0 {
                return Ok(None);
            }
            // A TLS record begins with its type, 22 for a handshake; an HTTP request with its method.
            if first[0].is_ascii_uppercase() {
                answer_plain(&mut stream).await?;
                return Ok(None);
            }
            self.acceptor.accept(stream).await.map(Some)
        };
        timeout(patience, handshake)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

fn load(
    certificate: &Watched,
    key: &Watched,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let read = |file: &Watched| {
        file.read().map_err(|source| TlsError::Read {
            path: file.path().to_owned(),
            source,
        })
    };
    let unusable = |file: &Watched, reason: String| TlsError::Content {
        path: file.path().to_owned(),
        reason,
    };
    let pem = read(certificate)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(certificate, error.to_string()))?;
    if chain.is_empty() || chain.len() > MAX_CHAIN {
        let reason = format!("it holds {} certificates", chain.len());
        return Err(unusable(certificate, reason));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| unusable(key, error.to_string()))?;
    CertifiedKey::from_der(chain, private, provider).map_err(|reason| TlsError::Pair {
        certificate: certificate.path().to_owned(),
        key: key.path().to_owned(),
        reason,
    })
}

/// The certificate that new connections are shown, whatever name they ask for.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

/// Says where HTTPS is spoken, and closes.
async fn answer_plain(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    let mut limited = (&mut *stream).take(PLAIN_HEAD as u64);
    while !ends_head(&head) && limited.read_buf(&mut head).await? > 0 {}
    let answer = plain_answer(&head, stream.local_addr()?);
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closed with unread bytes, the connection would be reset and the answer lost.
    let mut rest = stream.take(PLAIN_HEAD as u64);
    let _ = timeout(
        Duration::from_secs(1),
        tokio::io::copy(&mut rest, &mut tokio::io::sink()),
    )
    .await;
    Ok(())
}

fn ends_head(head: &[u8]) -> bool {
    head.windows(4).any(|window| window == b"\r\n\r\n")
}

/// A whole HTTP answer: 400 with an error body of the distribution specification.
fn plain_answer(head: &[u8], local: SocketAddr) -> String {
    let place = host_of(head).map_or_else(|| local.to_string(), |host| host.to_string());
    let body = ErrorBody::new(
        ErrorCode::Unsupported,
        format!("this port speaks HTTPS only; use https://{place}/ instead of http://{place}/"),
    )
    .to_json();
    let body = String::from_utf8_lossy(&body);
    let shown = if head.starts_with(b"HEAD ") {
        ""
    } else {
        &*body
    };
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\nx-content-type-options: nosniff\r\n\
         docker-distribution-api-version: registry/2.0\r\n\r\n{shown}",
        body.len()
    )
}

/// The host that a request's head asks for, if it is one.
fn host_of(head: &[u8]) -> Option<Host> {
    head.split(|byte| *byte == b'\n')
        .skip(1)
        .find_map(|line| {
            let line = std::str::from_utf8(line).ok()?;
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("host").then(|| value.trim())
        })
        .and_then(|value| Host::parse(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn local() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 5000))
    }

    #[test]
    fn plain_requests_learn_where_https_is() {
        for (head, place) in [
            (
                "GET /v2/ HTTP/1.1\r\nHost: build:5000\r\n\r\n",
                "build:5000",
            ),
            ("GET / HTTP/1.1\r\nhost:  [::1]:5000 \r\n", "[::1]:5000"),
            ("GET / HTTP/1.0\r\n\r\n", "127.0.0.1:5000"),
            (
                "GET / HTTP/1.1\r\nhost: \"><script>\r\n\r\n",
                "127.0.0.1:5000",
            ),
            ("GET / HT", "127.0.0.1:5000"),
        ] {
            let answer = plain_answer(head.as_bytes(), local());
            assert!(
                answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
                "{answer}"
            );
            assert!(answer.contains(&format!("https://{place}/")), "{answer}");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(ErrorBody::parse(body.as_bytes()).is_some(), "{body}");
            assert!(
                head.contains(&format!("content-length: {}\r\n", body.len())),
                "{head}"
            );
        }
        let head = plain_answer(b"HEAD /v2/ HTTP/1.1\r\n\r\n", local());
        assert!(head.ends_with("\r\n\r\n"), "{head}");
    }

    proptest! {
        #[test]
        fn any_head_is_answered(head in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ends_head(&head);
            let answer = plain_answer(&head, local());
            prop_assert!(answer.starts_with("HTTP/1.1 400"));
            let (own, _) = answer.split_once("\r\n\r\n").unwrap();
            // Nothing of the request becomes a header of the answer.
            prop_assert_eq!(own.lines().count(), 6);
        }
    }
}

//! Whom the client trusts.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;
use vdkr_core::reference::Host;
use vdkr_transfer::{Roots, TransferError, Trust, trust_rule};

use super::double::Double;
use super::*;

/// A server with a certificate of its own making for 127.0.0.1, and that certificate.
async fn server() -> (Double, String) {
    let names = vec!["127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = Double::serve(move |stream| {
        let acceptor = acceptor.clone();
        async move { acceptor.accept(stream).await.ok() }
    })
    .await;
    (server, made.cert.pem())
}

async fn ping(server: &Double, trust: Trust, roots: Roots) -> Result<(), TransferError> {
    let client = Client::new(ClientConfig {
        trust: Arc::new(move |_| trust),
        roots,
        ..quick()
    })
    .unwrap();
    client.ping(&Host::parse(&server.host()).unwrap()).await
}

#[tokio::test]
async fn a_known_authority_is_trusted_and_an_unknown_one_is_not() {
    let (server, ca) = server().await;
    let known = || Roots::none().with_pem(ca.as_bytes(), "ca.crt").unwrap();
    for trust in [Trust::Tls, Trust::PlainOrTls] {
        ping(&server, trust, known()).await.unwrap();
        let error = ping(&server, trust, Roots::none()).await.unwrap_err();
        let TransferError::Tls { reason, .. } = &error else {
            panic!("{error}");
        };
        assert!(reason.contains("UnknownIssuer"), "{reason}");
        assert!(!error.retryable());
    }
    // Named insecure, it is taken as it is.
    ping(&server, Trust::Insecure, Roots::none()).await.unwrap();
    server.finish();
}

#[tokio::test]
async fn an_authority_of_one_host_counts_for_that_host_alone() {
    let (server, ca) = server().await;
    let ask = async |named: &str, everywhere: Roots, own: Roots| {
        let client = Client::new(ClientConfig {
            trust: Arc::new(|_| Trust::Tls),
            roots: everywhere,
            host_roots: vec![(Host::parse(named).unwrap(), own)],
            ..quick()
        })
        .unwrap();
        client.ping(&Host::parse(&server.host()).unwrap()).await
    };
    let known = || Roots::none().with_pem(ca.as_bytes(), "ca.crt").unwrap();
    ask("127.0.0.1:5000", Roots::none(), known()).await.unwrap();
    for (named, everywhere, own) in [
        ("registry.example", Roots::none(), known()),
        ("127.0.0.2", Roots::none(), known()),
        // What counts elsewhere does not count for a host with authorities of its own.
        ("127.0.0.1", known(), Roots::none()),
    ] {
        let error = ask(named, everywhere, own).await.unwrap_err();
        assert!(matches!(error, TransferError::Tls { .. }), "{error}");
    }
    server.finish();
}

#[tokio::test]
async fn plain_http_where_tls_is_wanted_is_a_tls_error() {
    let server = Double::start().await;
    let error = ping(&server, Trust::Tls, Roots::none()).await.unwrap_err();
    assert!(matches!(error, TransferError::Tls { .. }), "{error}");
    drop(server);

    let server = Double::start().await;
    for trust in [Trust::PlainOrTls, Trust::Insecure] {
        ping(&server, trust, Roots::none()).await.unwrap();
    }
    drop(server);
}

#[tokio::test]
async fn is_alive_asks_once() {
    let server = Double::start().await;
    let host = Host::parse(&server.host()).unwrap();
    assert!(client().is_alive(&host, Duration::from_secs(5)).await);
    drop(server);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = Host::parse(&closed.local_addr().unwrap().to_string()).unwrap();
    drop(closed);
    let client = Client::new(ClientConfig {
        trust: trust_rule(vec![host.clone()]),
        ..quick()
    })
    .unwrap();
    assert!(!client.is_alive(&host, Duration::from_secs(5)).await);
}

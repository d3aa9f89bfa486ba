//! The server with TLS and passwords, on real sockets.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bench, scratch};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use vdkr_core::credentials::{Credential, Secret};
use vdkr_registry::{Limits, OpenError, Registry, ServerConfig, TlsFiles, hash_password, serve};

struct Server {
    bench: Bench,
    address: SocketAddr,
    trusted: Vec<CertificateDer<'static>>,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<std::io::Result<()>>,
}

fn files(dir: &Path) -> TlsFiles {
    TlsFiles {
        certificate: dir.join("server.crt"),
        key: dir.join("server.key"),
    }
}

/// Puts a new certificate for `localhost` with a new key in place.
fn certify(dir: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    replace(&dir.join("server.key"), &made.signing_key.serialize_pem());
    replace(&dir.join("server.crt"), &made.cert.pem());
    made.cert.der().clone()
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn user(dir: &Path, name: &str, password: &str) {
    let hash = hash_password(&Secret::new(password)).unwrap();
    replace(&dir.join("htpasswd"), &format!("{name}:{hash}\n"));
}

fn basic(pair: &str) -> String {
    let header = Credential::from_pair(pair)
        .unwrap()
        .authorization()
        .unwrap();
    format!("authorization: {}\r\n", header.expose())
}

impl Server {
    async fn start(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = scratch();
        let trusted = vec![certify(dir.path())];
        let bench = Bench::on(Arc::clone(&dir), |config| {
            config.tls = Some(files(dir.path()));
            change(config);
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let registry = bench.registry.clone();
        let done = tokio::spawn(serve(listener, registry, async { drop(stopped.await) }));
        Self {
            bench,
            address,
            trusted,
            stop: Some(stop),
            done,
        }
    }

    async fn limited(change: impl FnOnce(&mut Limits)) -> Self {
        Self::start(|config| change(&mut config.limits)).await
    }

    /// A handshake that verifies the certificate against those trusted.
    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.trusted {
            roots.add(certificate.clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost").unwrap(), stream)
            .await
    }

    async fn ask(&self, method: &str, path: &str, headers: &str) -> String {
        let mut stream = self.connect().await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.done.await.unwrap().unwrap();
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..200 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not come about");
}

#[tokio::test]
async fn everything_but_options_needs_a_password() {
    let server = Server::start(|config| {
        user(&config.storage, "yocto", "secret");
        config.htpasswd = Some(config.storage.join("htpasswd"));
    })
    .await;
    for (method, path) in [
        ("GET", "/v2/"),
        ("GET", "/v2/_catalog"),
        ("HEAD", "/v2/a/manifests/latest"),
        ("POST", "/v2/a/blobs/uploads/"),
        ("DELETE", "/v2/a/manifests/latest"),
        ("BREW", "/v2/"),
    ] {
        for headers in [String::new(), basic("yocto:wrong"), basic("who:secret")] {
            let answer = server.ask(method, path, &headers).await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
            let challenge = "www-authenticate: Basic realm=\"container-registry\"\r\n";
            assert!(answer.contains(challenge), "{answer}");
            assert!(
                method == "HEAD" || answer.contains("UNAUTHORIZED"),
                "{answer}"
            );
        }
    }
    let answer = server.ask("OPTIONS", "/v2/a/manifests/latest", "").await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    assert!(
        answer.contains("allow: GET, HEAD, PUT, DELETE\r\n"),
        "{answer}"
    );
    let right = basic("yocto:secret");
    let answer = server.ask("GET", "/v2/", &right).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = server.ask("GET", "/v2/a/manifests/latest", &right).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");

    // Another password counts from the next second on.
    user(server.bench.dir.path(), "yocto", "other");
    until("the new password", async || {
        let answer = server.ask("GET", "/v2/", &basic("yocto:other")).await;
        answer.starts_with("HTTP/1.1 200 ")
    })
    .await;
    let answer = server.ask("GET", "/v2/", &right).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_is_swapped_under_the_running_server_and_a_bad_one_is_not() {
    let mut server = Server::start(|_| {}).await;
    let mut old = server.connect().await.unwrap();
    let dir = Arc::clone(&server.bench.dir);
    for broken in [
        "",
        "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n",
    ] {
        replace(&dir.path().join("server.crt"), broken);
        server.bench.registry.refresh();
        assert!(server.connect().await.is_ok());
    }
    // A certificate without its key, as between two renames.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    replace(&dir.path().join("server.crt"), &other.cert.pem());
    server.bench.registry.refresh();
    assert!(server.connect().await.is_ok());

    let new = certify(dir.path());
    until("the new certificate", async || {
        server.connect().await.is_err()
    })
    .await;
    server.trusted = vec![new];
    assert!(server.connect().await.is_ok());
    // Who is connected stays connected.
    old.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    server.stop().await;
}

#[tokio::test]
async fn plain_http_gets_a_readable_400() {
    let server = Server::start(|_| {}).await;
    let long = format!(
        "GET /{} HTTP/1.1\r\nhost: build:5000\r\n\r\n",
        "a".repeat(6000)
    );
    for request in [
        "GET /v2/ HTTP/1.1\r\nhost: build:5000\r\n\r\n",
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: build:5000\r\ncontent-length: 3\r\n\r\nabc",
        &long,
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{answer}"
        );
        assert!(answer.contains("use https://build:5000/"), "{answer}");
    }
    // What is neither is closed.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"\x16\x03\x01nonsense\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    server.stop().await;
}

#[tokio::test]
async fn slow_handshakes_are_given_up_and_take_a_place_until_then() {
    let server = Server::limited(|limits| {
        limits.handshake_timeout = Duration::from_millis(1500);
        limits.connections = 1;
    })
    .await;
    for begun in [&b""[..], b"\x16\x03\x01\x02", b"GET /v2/"] {
        let began = Instant::now();
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        slow.write_all(begun).await.unwrap();
        // The only place is taken until the server loses its patience.
        let answer = server.ask("GET", "/v2/", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(began.elapsed() >= Duration::from_millis(1250));
        let mut rest = Vec::new();
        let _ = slow.read_to_end(&mut rest).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn the_end_of_the_server_does_not_wait_for_handshakes() {
    let server = Server::limited(|limits| {
        limits.handshake_timeout = Duration::from_mins(1);
        limits.shutdown_deadline = Duration::from_mins(1);
    })
    .await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    // One that was accepted after the silent one: both are under way.
    assert!(server.connect().await.is_ok());
    let began = Instant::now();
    server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn an_image_crosses_tls_whole() {
    let server = Server::start(|_| {}).await;
    let content = common::noise(3_000_000, 9);
    let digest = server.bench.push_blob("a", &content).await;
    let mut stream = server.connect().await.unwrap();
    let get = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(get.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert!(answer.ends_with(&content));
    server.stop().await;
}

#[test]
fn a_server_without_usable_files_does_not_open() {
    let dir = scratch();
    let open = |change: &dyn Fn(&mut ServerConfig)| {
        let mut config = ServerConfig::new(dir.path());
        change(&mut config);
        Registry::open(config).map(|_| ())
    };
    let with_tls = |config: &mut ServerConfig| config.tls = Some(files(dir.path()));
    assert!(matches!(open(&with_tls), Err(OpenError::Tls(_))));
    certify(dir.path());
    open(&with_tls).unwrap();
    std::fs::write(dir.path().join("server.key"), "nonsense").unwrap();
    let error = open(&with_tls).unwrap_err().to_string();
    assert!(error.contains("server.key"), "{error}");
    let htpasswd = |config: &mut ServerConfig| {
        config.htpasswd = Some(config.storage.join("htpasswd"));
    };
    assert!(matches!(open(&htpasswd), Err(OpenError::Users(_))));
    std::fs::write(dir.path().join("htpasswd"), "# team\nyocto:$apr1$a$b\n").unwrap();
    let error = open(&htpasswd).unwrap_err().to_string();
    assert!(
        error.contains("line 2") && error.contains("htpasswd -B"),
        "{error}"
    );
}

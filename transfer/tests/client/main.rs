//! The client against servers that misbehave in every way the protocol allows, and in some it
//! does not.

mod archive;
mod copy;
mod double;
mod download;
mod layout;
mod list;
mod local;
mod manifest;
mod memory;
mod mirror;
mod pull;
mod redirect;
mod renewal;
mod resume;
mod tls;
mod token;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use vdkr_core::credentials::{Credential, Secret};
use vdkr_core::digest::Digest;
use vdkr_core::manifest::Descriptor;
use vdkr_core::manifest::media_type::OCI_LAYER_GZIP;
use vdkr_core::reference::Host;
use vdkr_transfer::{Client, ClientConfig, CredentialSource, Repository, RetryPolicy, Trust};

/// Settings with which nothing takes long.
fn quick() -> ClientConfig {
    ClientConfig {
        retry: RetryPolicy {
            attempts: 4,
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(20),
        },
        idle_timeout: Duration::from_secs(5),
        ..ClientConfig::default()
    }
}

fn client() -> Client {
    Client::new(quick()).unwrap()
}

fn client_as(username: &str, password: &str) -> Client {
    let config = ClientConfig {
        credentials: basic(username, password),
        ..quick()
    };
    Client::new(config).unwrap()
}

fn basic(username: &str, password: &str) -> Arc<dyn CredentialSource> {
    let credential = Credential::Basic {
        username: username.to_owned(),
        password: Secret::new(password),
    };
    always(credential)
}

fn always(credential: Credential) -> Arc<dyn CredentialSource> {
    Arc::new(move |_: &Host| Ok::<_, String>(credential.clone()))
}

fn repository(host: &str, name: &str) -> Repository {
    Repository::new(Host::parse(host).unwrap(), name).unwrap()
}

fn blob(content: &[u8]) -> Descriptor {
    Descriptor::new(
        OCI_LAYER_GZIP,
        Digest::sha256(content),
        content.len() as u64,
    )
}

/// Bytes that do not repeat in a way that would hide a shift.
fn pattern(size: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Names under `.test` that all lead to this machine, so that a server here can play a stranger.
struct Loopback;

impl Resolve for Loopback {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            if !is_abroad(name.as_str()) {
                return Err("only .test names here".into());
            }
            let address: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
            Ok(Box::new(std::iter::once(address)) as Addrs)
        })
    }
}

fn is_abroad(name: &str) -> bool {
    name.rsplit('.').next() == Some("test")
}

/// A client for which `*.test` is not local, but may be plain.
fn client_abroad(credentials: Arc<dyn CredentialSource>) -> Client {
    Client::new(ClientConfig {
        resolver: Some(Arc::new(Loopback)),
        trust: Arc::new(|host| {
            if is_abroad(host.name()) || host.is_loopback() {
                Trust::PlainOrTls
            } else {
                Trust::Tls
            }
        }),
        credentials,
        ..quick()
    })
    .unwrap()
}

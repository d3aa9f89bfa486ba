//! The registry client: what it is asked about and where the answer is looked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Method, Url};
use vdkr_core::reference::{Host, Reference, ReferenceError, check_repository};

use crate::config::ClientConfig;
use crate::endpoint::Endpoint;
use crate::error::TransferError;
use crate::http::Response;
use crate::request::{Request, Sender};
use crate::scope::Scopes;

/// A repository of a registry: the place that manifests and blobs are addressed in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    host: Host,
    name: String,
}

impl Repository {
    /// The name must follow the grammar of the distribution specification.
    pub fn new(host: Host, name: &str) -> Result<Self, ReferenceError> {
        check_repository(name)?;
        Ok(Self {
            host,
            name: name.to_owned(),
        })
    }

    /// The registry.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The name within the registry: `library/alpine`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl From<&Reference> for Repository {
    fn from(reference: &Reference) -> Self {
        Self {
            host: reference.host().clone(),
            name: reference.repository().to_owned(),
        }
    }
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

/// A client for any number of registries. Clones share connections, tokens and what was learned
/// about the registries.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    sender: Sender,
    places: Mutex<HashMap<Host, Arc<Places>>>,
}

/// Where a registry's content can be read.
pub(crate) struct Places {
    mirrors: Vec<Endpoint>,
    registry: Endpoint,
}

impl Client {
    /// Makes a client. Fails when a CA certificate is no certificate; nothing is connected yet.
    pub fn new(config: ClientConfig) -> Result<Self, TransferError> {
        Ok(Self {
            inner: Arc::new(Inner {
                sender: Sender::new(config)?,
                places: Mutex::default(),
            }),
        })
    }

    /// The settings.
    pub fn config(&self) -> &ClientConfig {
        self.inner.sender.config()
    }

    /// Whether a registry answers at `host` and lets us in (`GET /v2/`, "end-1" of the specification).
    pub async fn ping(&self, host: &Host) -> Result<(), TransferError> {
        let places = self.places(host)?;
        let endpoint = &places.registry;
        let base = self.sender().base(endpoint).await?;
        let request = Request::new(Method::GET, base.url, Scopes::none());
        let answer = self.sender().call(endpoint, &request).await?;
        if answer.status().is_success() {
            answer.drain().await;
            return Ok(());
        }
        Err(self
            .sender()
            .fail(endpoint, &request.method, answer, "a registry")
            .await)
    }

    /// Whether anything speaks HTTP at `host`: no credentials, no patience. A registry that wants a
    /// login counts.
    pub async fn is_alive(&self, host: &Host, within: Duration) -> bool {
        let Ok(places) = self.places(host) else {
            return false;
        };
        let answers = places.registry.answers(&self.sender().http);
        tokio::time::timeout(within, answers).await.unwrap_or(false)
    }

    pub(crate) fn sender(&self) -> &Sender {
        &self.inner.sender
    }

    /// The registry itself and its mirrors.
    pub(crate) fn places(&self, host: &Host) -> Result<Arc<Places>, TransferError> {
        let mut known = self
            .inner
            .places
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = known.get(host) {
            return Ok(places.clone());
        }
        let places = Arc::new(Places {
            mirrors: Endpoint::mirrors(host, &self.config().mirrors)?,
            registry: Endpoint::registry(host.clone()),
        });
        known.insert(host.clone(), places.clone());
        Ok(places)
    }

    /// A request about a repository as this endpoint knows it. `path` follows its name.
    pub(crate) async fn request(
        &self,
        endpoint: &Endpoint,
        method: Method,
        repository: &Repository,
        path: &str,
        actions: &[&str],
    ) -> Result<Request, TransferError> {
        let name = endpoint.repository(repository.name());
        let base = self.sender().base(endpoint).await?.url;
        let url = join(&base, &format!("{name}/{path}"))?;
        Ok(Request::new(
            method,
            url,
            Scopes::repository(&name, actions),
        ))
    }

    pub(crate) async fn call(
        &self,
        endpoint: &Endpoint,
        request: &Request,
    ) -> Result<Response, TransferError> {
        self.sender().call(endpoint, request).await
    }

    pub(crate) async fn fail(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        answer: Response,
        what: &str,
    ) -> TransferError {
        self.sender()
            .fail(endpoint, &request.method, answer, what)
            .await
    }
}

impl Places {
    /// The registry, for everything that writes.
    pub(crate) fn registry(&self) -> &Endpoint {
        &self.registry
    }

    /// For reading: mirrors that answered lately, then the registry.
    pub(crate) fn readable(&self) -> impl Iterator<Item = &Endpoint> {
        let awake = self.mirrors.iter().filter(|mirror| !mirror.rests());
        awake.chain(std::iter::once(&self.registry))
    }

    /// Whether this outcome of reading from `endpoint` stands. A mirror that lacks the content, has it
    /// damaged or cannot be reached is passed over; one that refuses, or lies, is not.
    pub(crate) fn settles<T>(
        &self,
        endpoint: &Endpoint,
        outcome: &Result<Option<T>, TransferError>,
    ) -> bool {
        if std::ptr::eq(endpoint, &raw const self.registry) {
            return true;
        }
        match outcome {
            Ok(found) => found.is_some(),
            Err(TransferError::NotFound { .. }) => false,
            // It may well have the next one.
            Err(error) if error.is_damaged() => false,
            Err(error) if error.retryable() => {
                tracing::warn!(mirror = %endpoint.host(), %error, "mirror passed over");
                endpoint.rest();
                false
            }
            Err(_) => true,
        }
    }
}

/// `base` ends in a slash; `path` consists of checked names.
pub(crate) fn join(base: &Url, path: &str) -> Result<Url, TransferError> {
    base.join(path)
        .map_err(|error| TransferError::Config(format!("{base}{path}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_checked_where_they_are_made() {
        let host = || Host::parse("localhost:5000").unwrap();
        assert!(Repository::new(host(), "../etc").is_err());
        let repository = Repository::new(host(), "a/b").unwrap();
        assert_eq!(repository.to_string(), "localhost:5000/a/b");
        let reference = Reference::parse("alpine:3").unwrap();
        let repository = Repository::from(&reference);
        assert_eq!(repository.to_string(), "docker.io/library/alpine");
    }

    #[test]
    fn paths_stay_below_the_api() {
        let base = Url::parse("http://h:1/v2/").unwrap();
        let url = join(&base, "a/b/blobs/sha256:00").unwrap();
        assert_eq!(url.as_str(), "http://h:1/v2/a/b/blobs/sha256:00");
    }
}

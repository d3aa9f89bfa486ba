//! Where a registry is asked: itself or a mirror, with or without TLS.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};
use tokio::sync::OnceCell;
use vdkr_core::candidates::{RegistryPrefix, Scheme};
use vdkr_core::reference::Host;

use crate::auth::Gate;
use crate::config::{Mirror, Trust};
use crate::error::TransferError;
use crate::http::{Authorization, Http, Lane, Response};

/// Docker Hub's names are under `docker.io`, its API is elsewhere.
const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// How long a mirror that did not answer is left alone.
const MIRROR_REST: Duration = Duration::from_mins(1);

/// A place that serves repositories.
pub(crate) struct Endpoint {
    host: Host,
    namespace: Option<String>,
    scheme: Option<Scheme>,
    base: OnceCell<Base>,
    resting: Mutex<Option<Instant>>,
    pub(crate) gate: Gate,
}

/// The start of all its URLs, known once it has answered.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    /// `…/v2/`
    pub(crate) url: Url,
    pub(crate) lane: Lane,
}

impl Endpoint {
    /// The registry itself.
    pub(crate) fn registry(host: Host) -> Self {
        Self::new(host, None, None)
    }

    /// The mirrors configured for `host`, in order.
    pub(crate) fn mirrors(host: &Host, mirrors: &[Mirror]) -> Result<Vec<Self>, TransferError> {
        mirrors
            .iter()
            .filter(|mirror| mirror.host == *host)
            .flat_map(|mirror| &mirror.endpoints)
            .map(|text| {
                let prefix = RegistryPrefix::parse(text).map_err(|error| {
                    TransferError::Config(format!("the mirror {text} of {host}: {error}"))
                })?;
                Ok(Self::new(
                    prefix.host().clone(),
                    prefix.namespace().map(str::to_owned),
                    prefix.scheme(),
                ))
            })
            .collect()
    }

    fn new(host: Host, namespace: Option<String>, scheme: Option<Scheme>) -> Self {
        Self {
            host,
            namespace,
            scheme,
            base: OnceCell::new(),
            resting: Mutex::default(),
            gate: Gate::default(),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// The repository's name at this place.
    pub(crate) fn repository(&self, name: &str) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        }
    }

    /// Whether it did not answer a moment ago.
    pub(crate) fn rests(&self) -> bool {
        let resting = *self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.is_some_and(|until| Instant::now() < until)
    }

    pub(crate) fn rest(&self) {
        *self.resting.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now() + MIRROR_REST);
    }

    /// The start of its URLs. Where the trust rule leaves a choice of schemes, the first call finds
    /// out which one is spoken.
    pub(crate) async fn base(&self, http: &Http) -> Result<&Base, TransferError> {
        self.base.get_or_try_init(|| self.find_base(http)).await
    }

    async fn find_base(&self, http: &Http) -> Result<Base, TransferError> {
        let choices = self.choices((http.config().trust)(&self.host))?;
        let [first, second] = match choices {
            (only, None) => return Ok(only),
            (first, Some(second)) => [first, second],
        };
        let answer = match self.probe(http, &first).await {
            Ok(answer) if !wrong_scheme(&first, &answer) => {
                self.gate.greet(&first, &answer);
                answer.drain().await;
                return Ok(first);
            }
            other => other,
        };
        // With a port in the name, a closed port is closed for both.
        if let Err(error @ TransferError::Unreachable { .. }) = &answer
            && self.host.port().is_some()
            && refused(error)
        {
            return Err(error.clone());
        }
        match self.probe(http, &second).await {
            Ok(found) if !wrong_scheme(&second, &found) => {
                self.gate.greet(&second, &found);
                found.drain().await;
                Ok(second)
            }
            Err(error @ TransferError::Tls { .. }) if first.url.scheme() == "http" => Err(error),
            _ => answer.map(|_| first),
        }
    }

    /// What may be tried, in order.
    fn choices(&self, trust: Trust) -> Result<(Base, Option<Base>), TransferError> {
        let local = self.host.is_loopback();
        let secure = match trust {
            // No proxy leads to this machine.
            Trust::Tls if local => Lane::Direct,
            Trust::Tls => Lane::Verified,
            Trust::PlainOrTls => Lane::Direct,
            Trust::Insecure if local => Lane::InsecureDirect,
            Trust::Insecure => Lane::Insecure,
        };
        let plain = match trust {
            Trust::Tls => None,
            Trust::PlainOrTls => Some(Lane::Direct),
            Trust::Insecure => Some(secure),
        };
        let base = |scheme: Scheme, lane| self.base_url(scheme).map(|url| Base { url, lane });
        match (self.scheme, plain) {
            (Some(Scheme::Http), None) => Err(TransferError::Config(format!(
                "plain HTTP to {0} is not allowed: use https, or name {0} as insecure",
                self.host
            ))),
            (Some(Scheme::Http), Some(lane)) => Ok((base(Scheme::Http, lane)?, None)),
            (Some(Scheme::Https), _) | (None, None) => Ok((base(Scheme::Https, secure)?, None)),
            (None, Some(lane)) => {
                let secure = base(Scheme::Https, secure)?;
                let plain = base(Scheme::Http, lane)?;
                Ok(match trust {
                    Trust::Insecure => (secure, Some(plain)),
                    _ => (plain, Some(secure)),
                })
            }
        }
    }

    fn base_url(&self, scheme: Scheme) -> Result<Url, TransferError> {
        let text = if self.host.is_docker_hub() {
            format!("{}://{DOCKER_HUB_API}/v2/", scheme.as_str())
        } else {
            format!("{}://{}/v2/", scheme.as_str(), self.host)
        };
        Url::parse(&text).map_err(|error| TransferError::Config(format!("{text}: {error}")))
    }

    /// Whether anything there speaks HTTP, in whichever way may be spoken. Asks without patience.
    pub(crate) async fn answers(&self, http: &Http) -> bool {
        let Ok((first, second)) = self.choices((http.config().trust)(&self.host)) else {
            return false;
        };
        for base in std::iter::once(first).chain(second) {
            if ask(http, &base).await.is_ok() {
                return true;
            }
        }
        false
    }

    async fn probe(&self, http: &Http, base: &Base) -> Result<Response, TransferError> {
        let mut failures = 0;
        loop {
            match ask(http, base).await {
                Err(error) if error.retryable() => {
                    failures += 1;
                    // First contact: what does not listen now seldom does a second later.
                    let pause = http.config().retry.pause(failures, None);
                    match pause.filter(|_| failures < 3) {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => return Err(error),
                    }
                }
                other => return other,
            }
        }
    }
}

/// `GET /v2/` without credentials.
async fn ask(http: &Http, base: &Base) -> Result<Response, TransferError> {
    let nothing = Authorization::Nothing;
    let url = base.url.clone();
    let request = http.prepare(base.lane, Method::GET, url, HeaderMap::new(), &nothing)?;
    http.exchange(&base.url, request).await
}

/// Servers that expect TLS answer a plain request with 400, or send it to where TLS is.
fn wrong_scheme(base: &Base, answer: &Response) -> bool {
    let status = answer.status();
    base.url.scheme() == "http" && (status == StatusCode::BAD_REQUEST || status.is_redirection())
}

fn refused(error: &TransferError) -> bool {
    matches!(error, TransferError::Unreachable { reason, .. } if reason.contains("refused"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(endpoint: &str) -> Result<Vec<Endpoint>, TransferError> {
        let hub = Host::docker_hub();
        let mirror = Mirror {
            host: hub.clone(),
            endpoints: vec![endpoint.to_owned()],
        };
        Endpoint::mirrors(&hub, &[mirror])
    }

    fn urls(endpoint: &Endpoint, trust: Trust) -> Result<Vec<String>, TransferError> {
        let (first, second) = endpoint.choices(trust)?;
        let both = std::iter::once(first).chain(second);
        Ok(both.map(|base| base.url.to_string()).collect())
    }

    #[test]
    fn docker_hub_has_its_api_elsewhere() {
        let hub = Endpoint::registry(Host::docker_hub());
        let expected = ["https://registry-1.docker.io/v2/"];
        assert_eq!(urls(&hub, Trust::Tls).unwrap(), expected);
    }

    #[test]
    fn plain_http_only_where_the_rule_allows_it() {
        let host = Endpoint::registry(Host::parse("[::1]:5000").unwrap());
        assert_eq!(urls(&host, Trust::Tls).unwrap(), ["https://[::1]:5000/v2/"]);
        let plain_first = ["http://[::1]:5000/v2/", "https://[::1]:5000/v2/"];
        assert_eq!(urls(&host, Trust::PlainOrTls).unwrap(), plain_first);
        let tls_first = ["https://[::1]:5000/v2/", "http://[::1]:5000/v2/"];
        assert_eq!(urls(&host, Trust::Insecure).unwrap(), tls_first);
    }

    #[test]
    fn a_mirror_has_a_namespace_and_a_scheme() {
        let found = mirrors("http://m.example:8080/hub/copy").unwrap();
        let mirror = &found[0];
        assert_eq!(
            mirror.repository("library/alpine"),
            "hub/copy/library/alpine"
        );
        let plain = ["http://m.example:8080/v2/"];
        assert_eq!(urls(mirror, Trust::Insecure).unwrap(), plain);
        let error = urls(mirror, Trust::Tls).unwrap_err();
        assert!(error.to_string().contains("m.example:8080"), "{error}");
        assert!(mirrors("ftp://m.example").is_err());
    }

    #[test]
    fn other_hosts_have_other_mirrors() {
        let other = Host::parse("quay.io").unwrap();
        let mirror = Mirror {
            host: Host::docker_hub(),
            endpoints: vec!["m.example".to_owned()],
        };
        assert!(Endpoint::mirrors(&other, &[mirror]).unwrap().is_empty());
    }
}
